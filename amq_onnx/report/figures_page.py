"""A page of figures, each with a heading and what it shows, and of tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from amq_onnx.report.document import document, part, table_html
from amq_onnx.report.plotting import escaped
from amq_onnx.result_tables import Table

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Section:
    """A figure with its heading and a sentence or two."""

    heading: str
    note: str
    figure: go.Figure


def figures_page(title: str, said: str, sections: Sequence[Section], tables: Sequence[Table] = ()) -> str:
    """The text of one HTML file that loads nothing: the same text for the same arguments. Needs plotly."""
    body = Template(part("figures.html")).substitute(
        title=escaped(title),
        said=escaped(said),
        sections="\n".join(
            f"<section class='card wide'><h2>{escaped(section.heading)}</h2><p>{escaped(section.note)}</p>"
            f"<div id='figure{number}' class='figure'></div></section>"
            for number, section in enumerate(sections)
        ),
        tables="\n".join(table_html(table, wide=True) for table in tables),
    )
    figures = {f"figure{number}": section.figure.to_plotly_json() for number, section in enumerate(sections)}
    return document(title, body, {"figures": figures}, ["drawing.js"])
