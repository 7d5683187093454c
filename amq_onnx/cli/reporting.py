"""What --report writes beside the result itself: the command, versions, what should give pause."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from amq_onnx.model.file import write_text
from amq_onnx.report import Run, report_page
from amq_onnx.result import Result
from amq_onnx.runtime.verification import doubt, fall

_PACKAGES = ("amq-onnx", "onnx", "torch")


def write_report(path: Path, result: Result, arguments: argparse.Namespace, remarks: Sequence[str]) -> None:
    """Write the report of what `amq quantize` made with `arguments`."""
    if result.verification is not None:
        found, most = result.verification, arguments.max_drop
        if most is not None and not found.drop <= most:
            remarks = [*remarks, f"{fall(found)}, more than --max-drop {most:g} allows"]
        elif (remark := doubt(found, most)) is not None:
            remarks = [*remarks, remark]
    run = Run(arguments.model.name, arguments.given, _versions(), remarks)
    write_text(path, report_page(result, run))


def _versions() -> dict[str, str]:
    import onnxruntime

    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that isn't installed
            found[package] = "not installed"
    return found | {"onnxruntime": onnxruntime.__version__}
