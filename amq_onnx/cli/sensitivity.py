"""amq sensitivity: the table, to be searched later for many budgets."""

from __future__ import annotations

import argparse
from pathlib import Path

from amq_onnx.cli import console, options
from amq_onnx.cli.summary import print_sensitivity
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import read_model, write_text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="write sensitivity.json")
    options.add_data(parser, "calibration inputs")
    parser.add_argument("--bits", type=options.widths, default="2-8", metavar="2-8|2,4,8", help="widths of weights")
    parser.add_argument(
        "--activation-bits",
        type=options.activation_widths,
        default="8",
        metavar="8|4-8|float",
        help="widths of activations that the table should know",
    )
    options.add_granularity(parser)
    options.add_graph(parser)
    options.add_measurement(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "output")
    measurement = options.measurement(arguments).before(learning=False)
    model = read_model(arguments.model)
    data = options.opened(arguments, model)
    assert isinstance(data, Dataset)
    prepared = options.prepared(
        arguments, model, equalize=arguments.equalize, quantize_outputs=arguments.quantize_outputs
    )
    del model  # of a large one, much of the memory
    with console.progress() as progress:
        table = measure_sensitivity(prepared, data, arguments.bits, arguments.activation_bits, measurement, progress)
    if arguments.output is not None:
        write_text(arguments.output, table.to_json())
    print_sensitivity(table)
    if arguments.output is not None:
        console.line(f"wrote {arguments.output}")
