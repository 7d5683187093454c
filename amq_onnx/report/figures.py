"""The figures of a report."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, isfinite, log10
from typing import TYPE_CHECKING

from amq_onnx.formats import count, mix, percent, real
from amq_onnx.quantizer.encoding import distinct, mean_width
from amq_onnx.report.plotting import (
    ACCENT,
    HEAT,
    INK,
    MUTED,
    SECOND,
    SURFACE,
    above_zero,
    escaped,
    figure,
    name_rows,
    rows_height,
)
from amq_onnx.report.sites import Site
from amq_onnx.result import Result
from amq_onnx.result_tables import predictions

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PLAIN = "%{text}<extra></extra>"
# Marks of a colour bar that a telephone has room for.
_TICKS = 3


def frontier_figure(result: Result) -> go.Figure:
    """ΣΩ by the bytes of the file. Traces: the frontier, the point that is looked at, the file that was written."""
    points = result.frontier
    least = above_zero([*(point.perturbation for point in points), result.perturbation])
    drawn = figure(height=420, hovermode="closest")
    drawn.add_scatter(
        x=[point.bytes for point in points],
        y=[max(point.perturbation, least) for point in points],
        text=[
            _point(point.bytes, result, point.perturbation, result.sensitivity.mean_bits(point.plan.weights))
            for point in points
        ],
        mode="lines+markers",
        line={"color": ACCENT, "width": 1.5},
        marker={"color": ACCENT, "size": 6},
        hovertemplate=_PLAIN,
    )
    here = {"x": [result.bytes], "y": [max(result.perturbation, least)]}
    drawn.add_scatter(
        **here,
        mode="markers",
        marker={"color": "rgba(0,0,0,0)", "size": 18, "line": {"color": INK, "width": 2}},
        hoverinfo="skip",
    )
    bits = result.sensitivity.mean_bits(result.plan.weights)
    drawn.add_scatter(
        **here,
        text=["<b>this file</b><br>" + _point(result.bytes, result, result.perturbation, bits)],
        mode="markers",
        marker={"color": SECOND, "size": 14, "symbol": "star", "line": {"color": SURFACE, "width": 1}},
        hovertemplate=_PLAIN,
    )
    drawn.update_xaxes(title="bytes of the file", tickformat="~s", ticksuffix="B")
    drawn.update_yaxes(title="ΣΩ of the plan", type="log", exponentformat="power", dtick=1)
    return drawn


def _point(size: int, result: Result, perturbation: float, bits: float) -> str:
    share = percent(size / result.float_bytes)
    return f"{count(size)} bytes, {share} of float<br>ΣΩ {real(perturbation)}, {bits:.2f} bits a weight"


def sensitivity_figure(sites: Sequence[Site]) -> go.Figure:
    """Ω by site and width as colours, the chosen widths marked."""
    widths = sorted({bits for site in sites for bits in site.omega})
    least = above_zero(value for site in sites for value, _ in site.omega.values())
    levels = [
        [log10(max(site.omega[bits][0], least)) if bits in site.omega else None for bits in widths] for site in sites
    ]
    known = [level for row in levels for level in row if level is not None]
    marks = _marks(min(known), max(known))
    drawn = figure(height=rows_height(len(sites)))
    drawn.add_heatmap(
        z=levels,
        x=list(range(len(widths))),
        text=[[_cell(site, bits) for bits in widths] for site in sites],
        colorscale=HEAT,
        hoverongaps=False,
        xgap=1,
        ygap=1,
        hovertemplate=_PLAIN,
        colorbar={
            "orientation": "h",
            "x": 0.5,
            "tickangle": 0,
            "y": 1,
            "yanchor": "bottom",
            "ypad": 4,
            "thickness": 10,
            "outlinewidth": 0,
            "tickvals": marks,
            "ticktext": [real(10**mark) for mark in marks],
        },
    )
    chosen = [(widths.index(bits), row) for row, site in enumerate(sites) for bits in distinct(site.widths)]
    drawn.add_scatter(
        x=[column for column, _ in chosen],
        y=[row for _, row in chosen],
        mode="markers",
        marker={"color": SECOND, "size": 9, "line": {"color": SURFACE, "width": 1.5}},
        hoverinfo="skip",
    )
    name_rows(drawn, [site.name for site in sites])
    columns = [str(bits) for bits in widths]
    drawn.update_xaxes(
        title="bits", tickmode="array", tickvals=list(range(len(widths))), ticktext=columns, showgrid=False
    )
    drawn.update_xaxes(range=[-0.5, len(widths) - 0.5])
    return drawn


def _marks(low: float, high: float) -> list[float]:
    """Decimal logarithms to name on a scale: a few of the whole ones, or the ends where there are not two."""
    first, last = ceil(low), floor(high)
    if first >= last:
        return sorted({low, high})
    return list(range(first, last + 1, 1 + (last - first) // _TICKS))


def _cell(site: Site, bits: int) -> str:
    if bits not in site.omega:
        return ""
    value, error = site.omega[bits]
    known = f" ± {percent(error / value)}" if error and value else ""
    here = "" if bits not in distinct(site.widths) else "<br>chosen"
    if here and not isinstance(site.widths, int):
        here = f"<br>chosen for {site.widths.count(bits)} of {len(site.widths)} channels"
    return f"{escaped(site.name)}<br>{bits} bits: Ω {real(value)}{known}{here}"


def bits_figure(sites: Sequence[Site]) -> go.Figure:
    """Chosen bits by site as bars; of channels with widths of their own, the mean."""
    drawn = figure(height=rows_height(len(sites)), bargap=0.25)
    drawn.add_bar(
        x=[mean_width(site.widths) for site in sites],
        y=list(range(len(sites))),
        orientation="h",
        marker={"color": [ACCENT if site.weight else SECOND for site in sites], "line": {"width": 0}},
        text=[f"{mean_width(site.widths):.3g}" for site in sites],
        textposition="outside",
        cliponaxis=False,
        hovertext=[
            f"{escaped(site.name)}<br>{mix(site.widths)} bits, {count(site.elements)} elements<br>"
            f"Ω {real(site.chosen)}, {percent(site.share)} of ΣΩ"
            for site in sites
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )
    name_rows(drawn, [site.name for site in sites])
    widest = max(bits for site in sites for bits in site.omega)
    drawn.update_xaxes(title="bits", range=[0, widest], dtick=2)
    drawn.update_layout(margin={"r": 40})
    return drawn


def prediction_figure(result: Result) -> go.Figure:
    """Measured over predicted loss, a marker a site, with standard errors and the line where both are equal."""
    pairs = predictions(result)
    least = above_zero(number for predicted, value, _ in pairs.values() for number in (predicted, value))
    drawn = figure(height=420, hovermode="closest")
    ends = [least, max(*(max(predicted, value) for predicted, value, _ in pairs.values()), 10 * least) * 1.5]
    drawn.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": MUTED, "width": 1, "dash": "dot"}, hoverinfo="skip", name="equal"
    )
    for title, weights, colour, symbol in (
        ("weights", True, ACCENT, "circle"),
        ("activations", False, SECOND, "diamond"),
    ):
        names = [name for name in pairs if (name in result.plan.weights) == weights]
        if not names:
            continue
        values = [max(pairs[name][1], least) for name in names]
        drawn.add_scatter(
            name=title,
            x=[max(pairs[name][0], least) for name in names],
            y=values,
            error_y={
                # A single sample has no standard error.
                "array": [pairs[name][2] if isfinite(pairs[name][2]) else None for name in names],
                # A logarithmic axis has no room below 0: bars that reach there end at the bottom.
                "arrayminus": [min(pairs[name][2], value - least) for name, value in zip(names, values, strict=True)],
                "symmetric": False,
                "color": MUTED,
                "thickness": 1,
                "width": 0,
            },
            text=[
                f"{escaped(name)}<br>predicted {real(predicted)}<br>measured {real(value)} ± {real(error)}"
                for name in names
                for predicted, value, error in [pairs[name]]
            ],
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 8, "line": {"color": SURFACE, "width": 0.5}},
            hovertemplate=_PLAIN,
        )
    axis = {"type": "log", "exponentformat": "power", "dtick": 1}
    drawn.update_xaxes(title="predicted loss", **axis)
    drawn.update_yaxes(title="measured loss", **axis)
    drawn.update_layout(
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}, margin={"t": 30}, showlegend=True
    )
    return drawn
