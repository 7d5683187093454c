"""amq apply: the file of a plan, perhaps edited by hand."""

from __future__ import annotations

import argparse
from pathlib import Path

from amq_onnx.cli import console, options
from amq_onnx.compiler import compile_plan
from amq_onnx.model.file import file_bytes, fingerprint, read_model, write_model
from amq_onnx.plan import Plan
from amq_onnx.sensitivity import read_json_file, require_same_model


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    parser.add_argument("plan", type=Path, metavar="PLAN", help="plan.json of the model")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the file to write")
    options.add_target(parser)
    parser.add_argument("--keep-metadata", action="store_true", help="keep the exporter's metadata, at its size")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "output")
    plan = Plan.from_json(read_json_file(arguments.plan), str(arguments.plan))
    model = read_model(arguments.model)
    prepared = options.prepared(arguments, model, equalize=plan.equalized, quantize_outputs=plan.quantized_outputs)
    require_same_model(plan.model, fingerprint(prepared.model), str(arguments.plan))
    quantized = compile_plan(prepared, plan, keep_metadata=arguments.keep_metadata)
    written = write_model(quantized, arguments.output)
    original = file_bytes(arguments.model)
    share = console.percent(written / original)
    console.line(f"wrote {arguments.output}: {console.count(written)} bytes, {share} of the float file")
