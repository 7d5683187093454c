"""amq demo: the shipped digits network at about a seventh of its size, verified on labelled digits."""

from __future__ import annotations

import argparse
from pathlib import Path

import amq_onnx
from amq_onnx.cli import console, quantize
from amq_onnx.errors import UsageError

_MODEL = "digits_resnet.onnx"
_SIZE = "0.145"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="FOLDER", help="where the files go")
    parser.add_argument("--models", type=Path, metavar="FOLDER", help="the repository's models/ folder")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    models = arguments.models or Path(amq_onnx.__file__).resolve().parent.parent / "models"
    if not (models / _MODEL).is_file():
        raise UsageError(f"there is no '{models / _MODEL}': give the repository's models folder with --models")
    folder = arguments.output
    folder.mkdir(parents=True, exist_ok=True)
    parser = argparse.ArgumentParser()
    quantize.add_options(parser)
    command = [str(models / _MODEL), "-o", str(folder / "digits_resnet.quantized.onnx"), "--size", _SIZE]
    command += ["--data", f"{models / 'digits.py'}:calibration", "--eval", f"{models / 'digits.py'}:test"]
    command += [
        "--save-plan",
        str(folder / "plan.json"),
        "--save-sensitivity",
        str(folder / "sensitivity.json"),
    ]
    command += ["--report", str(folder / "report.html"), "--json", str(folder / "summary.json")]
    console.line("amq quantize " + " ".join(command))
    quantize.run(parser.parse_args(command, argparse.Namespace(given=["quantize", *command])))
    console.line(f"model, plan, sensitivity, report and summary are in {folder.resolve()}")
