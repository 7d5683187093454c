"""amq frontier: the Pareto-optimal plans of every size, from a sensitivity table."""

from __future__ import annotations

import argparse
from pathlib import Path

from amq_onnx.cli import console, options
from amq_onnx.cli.summary import write_json
from amq_onnx.compiler import Compiler
from amq_onnx.errors import UsageError
from amq_onnx.model.file import file_bytes, read_model
from amq_onnx.pins import pinned_widths

_SHOWN = 20


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    parser.add_argument("sensitivity", type=Path, metavar="SENSITIVITY", help="sensitivity.json of the model")
    parser.add_argument("--points", type=int, default=1000, metavar="N", help="sizes to search (default: %(default)s)")
    options.add_widths(parser)
    options.add_pins(parser)
    options.add_graph(parser)
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "json")
    if arguments.points < 2:
        raise UsageError("--points must be 2 or more")
    bits, activation_bits = options.checked_widths(arguments)
    table = options.loaded_sensitivity(arguments.sensitivity)
    assert table is not None
    model = read_model(arguments.model)
    prepared = options.prepared(arguments, model, equalize=table.equalized, quantize_outputs=table.quantized_outputs)
    compiler = Compiler(
        prepared,
        table,
        bits,
        activation_bits,
        activation_average=arguments.activation_average,
        pinned=pinned_widths(prepared, arguments.pin, activation_bits),
        channels=arguments.granularity == "channel",
    )
    points = compiler.frontier(arguments.points)
    original = file_bytes(arguments.model)
    step = max(1, len(points) // _SHOWN)
    shown = [*points[:-1:step], points[-1]]
    console.table(
        f"Pareto frontier: {len(points)} plans, {len(shown)} of them here",
        ["bytes", "share of the float file", "mean bits", "Ω"],
        [
            [
                console.count(point.bytes),
                console.percent(point.bytes / original),
                f"{table.mean_bits(point.plan.weights):.2f}",
                console.real(point.perturbation),
            ]
            for point in shown
        ],
        text_columns=0,
    )
    write_json(
        arguments.json,
        [
            {
                "bytes": point.bytes,
                "perturbation": point.perturbation,
                "weights": point.plan.weights,
                "activations": {name: site.bits for name, site in point.plan.activations.items()},
            }
            for point in points
        ],
    )
