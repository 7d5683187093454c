"""What every page is made of: the document around it, embedded data, tables, and the policy that nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from amq_onnx.report.plotting import escaped, plotly_script
from amq_onnx.result_tables import Table


def document(title: str, body: str, data: Mapping[str, Any], scripts: Sequence[str]) -> str:
    """The text of an HTML file that loads nothing, and runs nothing but Plotly and `scripts`, files of this package.

    body: HTML. data: by id, what the scripts read as JSON; `figures` are drawn at the elements of their names.
    """
    library, script = plotly_script(), "".join(map(part, scripts))
    return Template(part("document.html")).substitute(
        policy=policy(library, script),
        title=escaped(title),
        style=part("page.css"),
        body=body,
        data="\n".join(
            f'<script type="application/json" id="{name}">{embedded(held)}</script>' for name, held in data.items()
        ),
        library=library,
        script=script,
    )


def part(name: str) -> str:
    """A file of this package."""
    return (files("amq_onnx.report") / name).read_text(encoding="utf-8")


def policy(*scripts: str) -> str:
    """A content security policy under which nothing is fetched and only `scripts` run."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    # Plotly makes pictures of its own figures for download, and sets styles.
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:"


def embedded(data: Any) -> str:
    """JSON that can stand in a script element: no tag can end it, whatever the names in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def table_html(table: Table, *, wide: bool = False) -> str:
    """A table on a card of its own, as wide as the page or half of it."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if index < table.text_columns else ' class=number'}>{escaped(cell)}</{tag}>"
            for index, cell in enumerate(row)
        )

    head = f"<thead><tr>{cells(table.columns, 'th')}</tr></thead>" if any(table.columns) else ""
    rows = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in table.rows)
    return (
        f"<section class='card{' wide' if wide else ''}'><h2>{escaped(table.title)}</h2>"
        f"<div class='scroll'><table>{head}<tbody>\n{rows}\n</tbody></table></div></section>"
    )
