"""What all figures share: the library, their text, their axes."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from math import floor, log10
from typing import TYPE_CHECKING, Any

from amq_onnx.errors import UsageError

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Colours are those of page.css, which the page's script puts in: they change with the colour scheme.
ACCENT = "var(--accent)"
SECOND = "var(--second)"
INK = "var(--ink)"
MUTED = "var(--muted)"
LINE = "var(--line)"
SURFACE = "var(--surface)"
HEAT = [[0, "var(--heat-low)"], [0.5, "var(--heat-middle)"], [1, "var(--heat-high)"]]

_LABEL = 28
_SEPARATORS = "./:"
# Figures with a row a site: pixels a row while there are few, and most pixels of all.
_ROW = 20
_TALLEST = 12_000
_LEGIBLE = 12


def require_plotly(option: str = "--report") -> None:
    """Raise UsageError where the plotting library that `option` needs is not installed."""
    if find_spec("plotly") is None:
        raise UsageError(f"{option} needs plotly, which is not installed: pip install 'amq-onnx[report]'")


def plotly_script() -> str:
    """The library that draws the figures, as JavaScript."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def figure(*, height: int, **layout: Any) -> go.Figure:
    """An empty figure, `height` pixels high and as wide as its place."""
    import plotly.graph_objects as go

    found = go.Figure()
    found.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 10, "r": 16, "t": 10, "b": 10},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        hoverlabel={"bgcolor": SURFACE, "bordercolor": MUTED, "font": {"color": INK, "size": 12}, "align": "left"},
        showlegend=False,
        **layout,
    )
    lines = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "automargin": True, "tickcolor": LINE}
    found.update_xaxes(**lines)
    found.update_yaxes(**lines)
    return found


def rows_height(rows: int) -> int:
    """Pixels for a row a site: all of them, with the room that axes take."""
    return 110 + min(_ROW * rows, _TALLEST)


def name_rows(drawn: go.Figure, names: Sequence[str]) -> None:
    """Put names at the rows 0, 1, ... of `drawn`, from the top; only as many as can be read."""
    step = max(1, -(-_LEGIBLE * len(names) // _TALLEST))
    drawn.update_yaxes(
        tickmode="array",
        tickvals=list(range(0, len(names), step)),
        ticktext=[escaped(label) for label in labels(names)[::step]],
        range=[len(names) - 0.5, -0.5],
        tickfont={"size": 11},
        showgrid=False,
    )


def escaped(text: str) -> str:
    """`text` as it can stand in figures and between the tags of HTML: names come from the model file, and tags in them
    would be obeyed."""
    return html.escape(text, quote=False)  # figures would show the entity of a quote


def labels(names: Sequence[str], most: int = _LABEL) -> list[str]:
    """Short forms of `names`, no longer than `most`, that still tell as many of them apart as can be.

    What all have in common at both ends is left out, and of what is then too long the middle, the end or the front.
    """
    front = _common(names)
    behind = _common([name[front:][::-1] for name in names])
    bare = [name[front : len(name) - behind] for name in names]
    room = most - 1
    found = [
        [name if len(name) <= most else f"{name[:kept]}…{name[len(name) - room + kept :]}" for name in bare]
        for kept in (room // 3, room, 0)
    ]
    return max(found, key=lambda short: len(set(short)))


def _common(names: Sequence[str]) -> int:
    """How many characters all of several names begin with, up to a separator and less than any has."""
    if len(names) < 2:
        return 0
    alike = 0
    for place, characters in enumerate(zip(*(name[:-1] for name in names), strict=False)):
        if len(set(characters)) > 1:
            break
        if characters[0] in _SEPARATORS:
            alike = place + 1
    return alike


def above_zero(values: Iterable[float]) -> float:
    """What stands for 0 on a logarithmic axis: the decade below the smallest of `values` that is above 0."""
    return 10.0 ** floor(log10(min((value for value in values if value > 0), default=1e-6)) - 0.3)
