"""amq export: a PyTorch model as .onnx."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from amq_onnx.cli import console, options
from amq_onnx.errors import UsageError
from amq_onnx.exporting import export


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "callable",
        metavar="MODULE:CALLABLE",
        help="an importable function that returns a torch.nn.Module, or a pair of it and a tuple of example inputs",
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the .onnx file to write")
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=1x3x224x224",
        help="name and shape of a float input, where the callable returns no examples (may be repeated)",
    )
    parser.add_argument(
        "--output-name",
        action="append",
        default=[],
        metavar="NAME",
        help="name of an output, in the order that the model returns them (may be repeated)",
    )
    parser.add_argument("--opset", type=int, default=18, metavar="N", help="operator set (default: %(default)s)")
    parser.add_argument("--fixed-batch", action="store_true", help="keep the batch size of the example")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "output")
    made = _call(arguments.callable)
    inputs = [_input(text) for text in arguments.input]
    free = export(
        made,
        arguments.output,
        inputs=dict(inputs),
        outputs=arguments.output_name,
        opset=arguments.opset,
        dynamic_batch=not arguments.fixed_batch,
    )
    console.line(f"wrote {arguments.output}")
    if not free and not arguments.fixed_batch:
        console.note("the batch is that of the example: the model computes with its size, as len(x) does")


def _call(where: str) -> Any:
    module, _, name = where.partition(":")
    if not module or not name:
        raise UsageError(f"'{where}' is not module:callable")
    sys.path.insert(0, "")  # the user's folder, as `python -m` has it
    try:
        function = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the module is the user's: anything may happen while it is imported
        raise UsageError(f"module '{module}' can't be imported: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove("")
    if not callable(function):
        raise UsageError(f"module '{module}' has no callable '{name}'")
    try:
        return function()
    except Exception as error:
        raise UsageError(f"{where} failed: {type(error).__name__}: {error}") from error


def _input(text: str) -> tuple[str, tuple[int, ...]]:
    name, equals, shape = text.partition("=")
    sizes = shape.split("x")
    if not equals or not name or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(f"--input '{text}' is not NAME=1x3x224x224")
    return name, tuple(int(size) for size in sizes)
