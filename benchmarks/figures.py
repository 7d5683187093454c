"""Accuracy at given sizes on real models, each by one `amq quantize` command; uniform widths beside it.

    AMQ_DATA=... python benchmarks/figures.py [resnet20 mobilenetv2 magika resnet20-full resnet20-labels]

For every size, with learned rounding and rounded to nearest: bytes, accuracy and agreement in onnxruntime, seconds and
peak memory of the command, verification on the test images included; then the widest uniform width whose file fits the
same size, by the same code. `resnet20-full` trains the whole graph on 20,000 images, a quarter of an hour a row with
two threads, `resnet20-labels` on their labels too, half an hour a row, judged by 1,000 of the 10,000 test images and
scored on the others.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import file_types
from command import amq
from real_data import data_folder

from amq_onnx.compiler import Compiler
from amq_onnx.model.file import file_bytes, read_model
from amq_onnx.rewriting import prepare
from amq_onnx.sensitivity import Sensitivity

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """A model, its sizes (with more options), and the scripts whose data it is quantized with and scored on."""

    name: str
    model: Callable[[], Path]
    sizes: tuple[tuple[str, tuple[str, ...]], ...]
    calibration: str
    test: str


def _script(name: str) -> str:
    return str(_HERE / name)


def _resnet20() -> Path:
    return data_folder() / "resnet20_cifar10_op20.onnx"


_MIXED_ACTIVATIONS = ("--activation-bits", "3-8", "--activation-average", "5")
_FOUR_ON_AVERAGE = ("--activation-bits", "2-8", "--activation-average", "4")
_FOUR_BITS = ("--activation-bits", "4")
# As published figures of 4-bit activations have it, what the first and the last layer read has 8 bits.
_FOUR_BITS_INSIDE = (*_FOUR_BITS, "--pin", "^(input|mean.pooled)$=8")
_IMAGES = f"{_HERE / 'real_data.py'}"
_FULL = ("--tune", "full", "--augment", f"{_IMAGES}:flips_and_shifts", "--tune-epochs", "14")
# What narrow activations lose comes back slowly, from labels, in large steps and many epochs.
_LABELLED = (
    *("--tune", "full", "--augment", f"{_IMAGES}:flips_shifts_and_patches", "--tune-epochs", "36", "--bfloat16"),
    *("--label-share", ".5", "--tune-rate", "3", "--tune-eval", f"{_IMAGES}:resnet20_validation"),
)
_TRAINING = {*_FULL, *_LABELLED}
CASES = (
    Case(
        "resnet20",
        _resnet20,
        (
            *((size, ()) for size in (".145", ".115", ".10", ".085")),
            (".145", _FOUR_BITS),
            (".145", _FOUR_BITS_INSIDE),
            (".145", _FOUR_ON_AVERAGE),
            (".145", _MIXED_ACTIVATIONS),
        ),
        _script("real_data.py:resnet20_calibration"),
        _script("real_data.py:resnet20_test"),
    ),
    Case(
        "mobilenetv2",
        lambda: data_folder() / "mobilenetv2_imagenet_op20.onnx",
        ((".16", ()), (".14", ()), (".115", ())),
        _script("real_data.py:mobilenetv2_calibration"),
        _script("real_data.py:mobilenetv2_test"),
    ),
    Case(
        "magika",
        lambda: Path(file_types.model()),
        ((".10", ()),),
        _script("file_types.py:calibration"),
        _script("file_types.py:test"),
    ),
    Case(
        "resnet20-full",
        _resnet20,
        ((".085", _FULL), (".07", ("--bits", "1-8", *_FULL))),
        _script("real_data.py:resnet20_training"),
        _script("real_data.py:resnet20_test"),
    ),
    Case(
        "resnet20-labels",
        _resnet20,
        tuple((".145", (*widths, *_LABELLED)) for widths in (_FOUR_BITS, _FOUR_ON_AVERAGE, _FOUR_BITS_INSIDE)),
        _script("real_data.py:resnet20_training"),
        _script("real_data.py:resnet20_other_test"),
    ),
)
CASES_BY_DEFAULT = ("resnet20", "mobilenetv2", "magika")


class Runner:
    """Runs the commands of one case in a folder."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.model = case.model()
        self.calibration = case.calibration
        self.test = case.test
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
            widths = tuple(option for option in options if option not in _TRAINING)
            known = tables.get(widths)
            table = tables.setdefault(widths, str(Path(name) / f"sensitivity{len(tables)}.json"))
            given = ("--save-sensitivity", table) if known is None else ("--from-sensitivity", table)
            found = runner.quantize("--size", size, *options, "--data", runner.calibration, *given)
            runner.row(f"{case.name} {size} {' '.join(widths)}", *found)
            found = runner.quantize("--size", size, *widths, "--from-sensitivity", table)
            runner.row(f"{case.name} {size} {' '.join(widths)} to nearest", *found)
        plain = next(iter(tables.values()))
        sizes = uniform_bytes(runner.model, Path(plain)) if not next(iter(tables)) else {}
        fitting: dict[int, list[str]] = {}
        for size in dict.fromkeys(size for size, options in case.sizes if sizes and not options):
            budget = float(size) * file_bytes(runner.model)
            bits = max((bits for bits, taken in sizes.items() if taken <= budget), default=min(sizes))
            fitting.setdefault(bits, []).append(size)
        for bits, fits in fitting.items():
            label = f"{case.name} {', '.join(fits)} uniform {bits} bits"
            found = runner.quantize("--size", "0.999", "--bits", str(bits), "--from-sensitivity", plain)
            runner.row(f"{label} to nearest", *found)
            tuned = ("--data", runner.calibration, "--bits", str(bits), "--from-sensitivity", plain)
            runner.row(label, *runner.quantize("--size", "0.999", *tuned))


def uniform_bytes(model: Path, table: Path) -> dict[int, int]:
    """Bytes of the file with all weights at one width, by width."""
    prepared = prepare(read_model(model))
    sensitivity = Sensitivity.from_json(table.read_text(), str(table))
    return {bits: Compiler(prepared, sensitivity, [bits], [8]).least_bytes for bits in range(2, 9)}


if __name__ == "__main__":
    for wanted in CASES:
        if wanted.name in (sys.argv[1:] or CASES_BY_DEFAULT):
            run(wanted)
