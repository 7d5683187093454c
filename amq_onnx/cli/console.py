"""What the terminal shows: tables, notes and progress. Plain lines where it isn't a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from amq_onnx.calibration import Progress as ProgressCallback
from amq_onnx.formats import count as count
from amq_onnx.formats import percent as percent
from amq_onnx.formats import real as real
from amq_onnx.result_tables import Table as ResultTable

# Figures go to standard output, progress and notes to standard error, so that output can be piped.
_FILE_WIDTH = 120
out = Console(width=None if Console().is_terminal else _FILE_WIDTH, highlight=False)
err = Console(stderr=True, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """Print a table; the first `text_columns` are text, the others numbers."""
    shown = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        shown.add_column(column, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    out.print(shown)


def show(found: ResultTable) -> None:
    """Print a table of a result."""
    table(found.title, found.columns, found.rows, text_columns=found.text_columns)


def note(text: str) -> None:
    """A remark beside the result."""
    err.print(f"note: {text}", markup=False, soft_wrap=True)


def line(text: str) -> None:
    """A line of the result."""
    out.print(text, markup=False, soft_wrap=True)


@contextmanager
def progress() -> Iterator[ProgressCallback]:
    """A progress callback: bars on a terminal, else one line a stage."""
    if not err.is_terminal:
        yield _PlainProgress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        tasks: dict[str, object] = {}

        def report(what: str, done: int, total: int | None) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)  # type: ignore[arg-type]

        yield report


class _PlainProgress:
    def __init__(self) -> None:
        self._stage = ""

    def __call__(self, what: str, done: int, total: int | None) -> None:
        # Probes are one stage: a line each would say nothing more.
        stage = what.split(",", maxsplit=1)[0]
        if stage != self._stage:
            self._stage = stage
            err.print(f"{stage} ...", markup=False)
