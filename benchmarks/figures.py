"""Accuracy at given sizes on real models, each by one `amq quantize` command; uniform widths beside it.

    AMQ_DATA=... python benchmarks/figures.py [resnet20|mobilenetv2 ...]

For every size: bytes, accuracy and agreement in onnxruntime, seconds and peak memory of the command, verification on
the test images included; then the widest uniform width whose file fits the same size, by the same code.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import amq
from real_data import data_folder

from amq_onnx.compiler import Compiler
from amq_onnx.model.file import file_bytes, read_model
from amq_onnx.rewriting import prepare
from amq_onnx.sensitivity import Sensitivity

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """A model, its sizes (with more options), and how its results are scored."""

    name: str
    file: str
    sizes: tuple[tuple[str, tuple[str, ...]], ...]


_MIXED_ACTIVATIONS = ("--activation-bits", "4-8", "--activation-average", "5")
CASES = (
    Case(
        "resnet20",
        "resnet20_cifar10_op20.onnx",
        ((".25", ()), (".18", ()), (".145", ()), (".115", ()), (".145", _MIXED_ACTIVATIONS)),
    ),
    Case("mobilenetv2", "mobilenetv2_imagenet_op20.onnx", ((".26", ()), (".20", ()), (".16", ()), (".14", ()))),
)


class Runner:
    """Runs the commands of one case in a folder."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.model = data_folder() / case.file
        self.calibration = f"{_HERE / 'real_data.py'}:{case.name}_calibration"
        self.test = f"{_HERE / 'real_data.py'}:{case.name}_test"
        self.folder = folder

    def quantize(self, *options: str) -> tuple[dict[str, Any], float, float]:
        """The summary of `amq quantize`, its seconds and its peak."""
        summary = self.folder / "summary.json"
        taken = amq(
            *("quantize", str(self.model), "-o", str(self.folder / "out.onnx"), "--json", str(summary)),
            *("--eval", self.test, *options),
        )
        return json.loads(summary.read_text()), *taken

    def agreement(self) -> float:
        """Share of test images on which the file just written agrees with full precision."""
        summary = self.folder / "verify.json"
        written = str(self.folder / "out.onnx")
        amq(
            *("verify", str(self.model), written, "--data", self.test, "--metric", "agreement"),
            *("--json", str(summary)),
        )
        return float(json.loads(summary.read_text())["quantized_score"])

    def row(self, label: str, summary: dict[str, Any], seconds: float, peak: float) -> None:
        """Print one line of the table."""
        result = summary["verification"]
        print(
            f"{label:42s} {summary['bytes']:>9,} bytes ({summary['bytes'] / summary['float_bytes']:.4f}, "
            f"{summary['bytes'] / summary['budget_bytes']:.1%} of budget) {summary['mean_weight_bits']:.2f} bits  "
            f"top-1 {result['quantized_score']:.4f} (float {result['float_score']:.4f}, drop "
            f"{100 * result['drop']:.2f})  agreement {self.agreement():.4f}  latency {result['latency_ratio']:.2f}  "
            f"{seconds:.0f} s {peak:.0f} MB",
            flush=True,
        )


def run(case: Case) -> None:
    """Print the table of one model: the first row of each setting measures, the others search its table."""
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(case, Path(name))
        tables: dict[tuple[str, ...], str] = {}
        for size, options in case.sizes:
            label = f"{case.name} {size} {' '.join(options)}"
            if options in tables:
                found = runner.quantize("--size", size, *options, "--from-sensitivity", tables[options])
            else:
                tables[options] = str(Path(name) / f"sensitivity{len(tables)}.json")
                whole = ("--data", runner.calibration, "--save-sensitivity", tables[options])
                found = runner.quantize("--size", size, *options, *whole)
                label += " (whole command)"
            runner.row(label, *found)
        table = tables[()]
        sizes = uniform_bytes(runner.model, Path(table))
        for size in dict.fromkeys(size for size, _ in case.sizes):
            budget = float(size) * file_bytes(runner.model)
            bits = max((bits for bits, taken in sizes.items() if taken <= budget), default=min(sizes))
            found = runner.quantize("--size", "0.999", "--bits", str(bits), "--from-sensitivity", table)
            runner.row(f"{case.name} {size} uniform {bits} bits", *found)


def uniform_bytes(model: Path, table: Path) -> dict[int, int]:
    """Bytes of the file with all weights at one width, by width."""
    prepared = prepare(read_model(model))
    sensitivity = Sensitivity.from_json(table.read_text(), str(table))
    return {bits: Compiler(prepared, sensitivity, [bits], [8]).least_bytes for bits in range(2, 9)}


if __name__ == "__main__":
    for wanted in CASES:
        if len(sys.argv) == 1 or wanted.name in sys.argv[1:]:
            run(wanted)
