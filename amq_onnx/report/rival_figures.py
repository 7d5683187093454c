"""Figures of rival strategies: where each lies among all settings (HAWQ-V2, figure 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amq_onnx.formats import count, real
from amq_onnx.report.plotting import ACCENT, INK, MUTED, SECOND, SURFACE, above_zero, escaped, figure

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PLAIN = "%{text}<extra></extra>"
_SYMBOLS = ("star", "circle", "diamond", "square", "triangle-up", "cross", "triangle-down", "x")


@dataclass(frozen=True)
class Setting:
    """A choice of widths: bytes of its file, its perturbation; name: of the strategy, or none; said: its result."""

    bytes: int
    perturbation: float
    name: str = ""
    said: str = ""


def settings_figure(sampled: Sequence[Setting], frontier: Sequence[Setting], rivals: Sequence[Setting]) -> go.Figure:
    """Perturbation by bytes: settings drawn at random, the frontier, and the rivals' files."""
    least = above_zero(setting.perturbation for setting in (*sampled, *frontier, *rivals))

    def ends(settings: Sequence[Setting]) -> dict[str, list[float]]:
        return {
            "x": [setting.bytes for setting in settings],
            "y": [max(setting.perturbation, least) for setting in settings],
        }

    drawn = figure(height=520, hovermode="closest")
    drawn.add_scatter(
        **ends(sampled), name="drawn at random", mode="markers", marker={"color": MUTED, "size": 3}, hoverinfo="skip"
    )
    drawn.add_scatter(
        **ends(frontier),
        name="Pareto frontier",
        mode="lines",
        line={"color": ACCENT, "width": 2},
        text=[f"frontier<br>{count(point.bytes)} bytes<br>ΣΩ {real(point.perturbation)}" for point in frontier],
        hovertemplate=_PLAIN,
    )
    names = list(dict.fromkeys(setting.name for setting in rivals))
    for number, name in enumerate(names):
        own = [setting for setting in rivals if setting.name == name]
        drawn.add_scatter(
            **ends(own),
            name=escaped(name),
            mode="markers",
            marker={
                "color": INK if number else SECOND,
                "symbol": _SYMBOLS[number % len(_SYMBOLS)],
                "size": 11,
                "line": {"color": SURFACE, "width": 1},
            },
            text=[
                f"<b>{escaped(name)}</b><br>{count(setting.bytes)} bytes<br>ΣΩ {real(setting.perturbation)}<br>"
                f"{escaped(setting.said)}"
                for setting in own
            ],
            hovertemplate=_PLAIN,
        )
    drawn.update_xaxes(title="bytes of the file", tickformat="~s", ticksuffix="B")
    drawn.update_yaxes(title="ΣΩ by traces", type="log", exponentformat="power", dtick=1)
    drawn.update_layout(
        showlegend=True, legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}, margin={"t": 30}
    )
    return drawn
