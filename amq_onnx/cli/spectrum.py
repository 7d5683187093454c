"""amq spectrum: eigenvalues of each weight's Hessian block."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from amq_onnx.cli import console, options
from amq_onnx.cli.summary import write_json
from amq_onnx.curvature.lanczos import Spectrum
from amq_onnx.errors import UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.formats import count, percent, real
from amq_onnx.freed_batch import freed
from amq_onnx.head_losses import losses_on
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import read_model, write_text
from amq_onnx.model.heads import find_heads, weighed
from amq_onnx.report.figures_page import Section, figures_page
from amq_onnx.report.plotting import require_plotly
from amq_onnx.report.spectrum_figures import density_figure, eigenvalues_figure
from amq_onnx.result_tables import Table
from amq_onnx.spectra import measure_spectra


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    options.add_data(parser, "inputs that the loss is taken over")
    parser.add_argument("--weights", metavar="REGEX", help="only weights whose whole name this matches")
    parser.add_argument("--top", type=int, default=20, metavar="N", help="eigenvalues of each (default: %(default)s)")
    parser.add_argument(
        "--method",
        choices=["gauss-newton", "hessian"],
        default="gauss-newton",
        help="which matrix: without labels, or with them (default: %(default)s)",
    )
    parser.add_argument(
        "--loss",
        type=options.loss,
        default="auto",
        metavar="auto|softmax|sigmoid|squared|OUTPUT=LOSS,...",
        help="on outputs",
    )
    parser.add_argument(
        "--relative-error",
        type=float,
        default=0.01,
        metavar="E",
        help="how well each is known, of the largest (default: %(default)s)",
    )
    parser.add_argument(
        "--max-products", type=int, default=60, metavar="N", help="passes over the data at most (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="samples at a time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--device", default="cpu", help="torch device: cpu, cuda, cuda:1")
    options.add_graph(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="draw the eigenvalues and their density")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "json", "plot")
    if arguments.plot is not None:
        require_plotly("--plot")
    for option, least in (("top", 1), ("max_products", 1), ("batch", 1), ("seed", 0)):
        if getattr(arguments, option) < least:
            raise UsageError(f"--{option.replace('_', '-')} must be {least} or more")
    if not arguments.relative_error > 0:
        raise UsageError("--relative-error must be above 0")
    device = options.require_device(arguments.device)
    model = read_model(arguments.model)
    data = options.opened(arguments, model)
    assert isinstance(data, Dataset)
    prepared = options.prepared(arguments, model)
    prepared.require_weights()
    heads, _ = find_heads(prepared.model, arguments.loss)
    weights = _chosen([site.name for site in prepared.sites.weights], arguments.weights)
    executor = Executor(weighed(prepared.model, heads), device=device)
    data = freed(data, [executor])
    with console.progress() as progress:
        found = measure_spectra(
            executor,
            data,
            weights,
            heads,
            losses_on(executor, data, heads),
            method=arguments.method,
            count=arguments.top,
            relative_error=arguments.relative_error,
            max_products=arguments.max_products,
            batch_size=arguments.batch,
            seed=arguments.seed,
            progress=progress,
        )
    samples = data.samples()
    shown = _table(found, arguments.method, samples)
    console.show(shown)
    if not all(spectrum.converged for spectrum in found.values()):
        console.note("some eigenvalues are known less well than --relative-error asks: raise --max-products")
    if not any(spectrum.values.any() for spectrum in found.values()):
        console.note("no eigenvalue is above 0: scores so far apart have no curvature, use --loss squared")
    if arguments.plot is not None:
        write_text(arguments.plot, _page(arguments.model.name, found, shown))
        console.line(f"wrote {arguments.plot}")
    if arguments.json is not None:
        rows = {name: _numbers(spectrum) for name, spectrum in found.items()}
        write_json(arguments.json, {"method": arguments.method, "samples": samples, "weights": rows})
        console.line(f"wrote {arguments.json}")


def _chosen(names: list[str], pattern: str | None) -> list[str]:
    if pattern is None:
        return names
    try:
        found = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise UsageError(f"--weights '{pattern}' is no regular expression: {error}") from error
    if not found:
        raise UsageError(f"--weights '{pattern}' matches no weight; `amq inspect` lists them")
    return found


def _share(spectrum: Spectrum) -> float:
    """The largest eigenvalue over the trace."""
    return float(spectrum.values[0]) / spectrum.trace if spectrum.trace else 0.0


def _numbers(spectrum: Spectrum) -> dict[str, Any]:
    return {
        "elements": spectrum.size,
        "eigenvalues": spectrum.values.tolist(),
        "errors": spectrum.errors.tolist(),
        "trace": spectrum.trace,
        "share_of_first": _share(spectrum),
        "density": {"points": spectrum.points.tolist(), "weights": spectrum.weights.tolist()},
        "products": spectrum.products,
        "converged": spectrum.converged,
    }


def _table(found: dict[str, Spectrum], method: str, samples: int) -> Table:
    return Table(
        f"eigenvalues ({method}, {samples} samples)",
        [
            "weight",
            "elements",
            "first",
            "second",
            "last of those",
            "share of the first in the trace",
            "error",
            "passes",
        ],
        [
            [
                name,
                count(spectrum.size),
                real(float(spectrum.values[0])),
                real(float(spectrum.values[1])) if len(spectrum.values) > 1 else "",
                real(float(spectrum.values[-1])),
                percent(_share(spectrum)),
                real(float(spectrum.errors.max())),
                str(spectrum.products),
            ]
            for name, spectrum in found.items()
        ],
    )


def _page(model: str, found: dict[str, Spectrum], table: Table) -> str:
    values = {name: [float(value) for value in spectrum.values] for name, spectrum in found.items()}
    densities = {name: (spectrum.points, spectrum.weights) for name, spectrum in found.items()}
    most = max(map(len, values.values()))
    sections = [
        Section("largest eigenvalues", "A click on a name shows or hides it.", eigenvalues_figure(values)),
        Section(
            "spectral density",
            "The share of all eigenvalues a decade, from one Lanczos quadrature; what is nearly 0 is at the left end.",
            density_figure(densities),
        ),
    ]
    return figures_page(model, f"The {most} largest eigenvalues of each weight's Hessian block.", sections, [table])
