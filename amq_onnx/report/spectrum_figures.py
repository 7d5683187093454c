"""Figures of spectra: the largest eigenvalues of each weight, and the density of all (HAWQ-V2, figure 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from amq_onnx.report.plotting import above_zero, escaped, figure, labels

if TYPE_CHECKING:
    import plotly.graph_objects as go

Floats = NDArray[np.float64]
# Lines that are drawn at first; a click on a name shows or hides one.
_SHOWN = 6
_COLOURS = ("#2560d8", "#d4660a", "#2c9455", "#b03a8c", "#8a6d1b", "#3aa0b5", "#7a5ad0", "#c0392b")
# Points of a density, and its kernel's width in decades.
_POINTS = 300
_WIDTH = 0.12


def eigenvalues_figure(values: Mapping[str, Sequence[float]]) -> go.Figure:
    """Eigenvalues of each weight, the largest first."""
    least = above_zero(value for row in values.values() for value in row)
    drawn = figure(height=480, hovermode="closest")
    for number, (name, row) in enumerate(values.items()):
        drawn.add_scatter(
            x=list(range(1, len(row) + 1)),
            y=[max(value, least) for value in row],
            **_line(number, name, list(values)),
        )
    drawn.update_xaxes(
        title="place of the eigenvalue", dtick=1 if max(map(len, values.values()), default=0) < 30 else 10
    )
    drawn.update_yaxes(title="eigenvalue", type="log", exponentformat="power", dtick=1)
    drawn.update_layout(**_legend(len(values)))
    return drawn


def density_figure(densities: Mapping[str, tuple[Floats, Floats]]) -> go.Figure:
    """The share of the eigenvalues in each place of a logarithmic axis, from points and weights of a quadrature."""
    known = [points[points > 0] for points, _ in densities.values()]
    top = max((float(points.max()) for points in known if len(points)), default=1.0)
    grid = np.linspace(np.log10(top) - 8, np.log10(top) + 0.5, _POINTS)
    drawn = figure(height=420, hovermode="closest")
    for number, (name, (points, weights)) in enumerate(densities.items()):
        # What is nearly zero, or below it by rounding, ends up at the left end.
        place = np.clip(np.log10(np.maximum(points, 1e-300)), grid[0], None)
        share = np.exp(-0.5 * np.square((grid[:, None] - place) / _WIDTH)) @ weights / (_WIDTH * np.sqrt(2 * np.pi))
        shown = np.maximum(share, 1e-8)
        drawn.add_scatter(
            x=[float(f"{value:.4g}") for value in 10**grid],
            y=[float(f"{value:.4g}") for value in shown],
            **_line(number, name, list(densities), marks=False),
        )
    drawn.update_xaxes(title="eigenvalue", type="log", exponentformat="power", dtick=1)
    drawn.update_yaxes(title="density (share a decade)", type="log", exponentformat="power", dtick=1)
    drawn.update_layout(**_legend(len(densities)))
    return drawn


def _line(number: int, name: str, names: Sequence[str], *, marks: bool = True) -> dict[str, object]:
    return {
        "name": escaped(labels(names)[number]),
        "mode": "lines+markers" if marks else "lines",
        "line": {"color": _COLOURS[number % len(_COLOURS)], "width": 1.5},
        "marker": {"size": 5},
        "visible": True if number < _SHOWN else "legendonly",
        "hovertemplate": f"{escaped(name)}<br>%{{x}}: %{{y:.3g}}<extra></extra>",
    }


def _legend(lines: int) -> dict[str, object]:
    # Below the figure, with a row of names for every three.
    return {
        "showlegend": True,
        "legend": {"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top", "font": {"size": 11}},
        "height": 420 + 22 * (1 + lines // 3),
    }
