"""What each choice of ranges and biases is worth at the same size, each by one `amq quantize` command.

    AMQ_DATA=... python benchmarks/ranges.py [resnet20 mobilenetv2] [--nearest]

A row a switch, that one turned from its default, at two sizes, weights rounded to nearest: accuracy and agreement in
onnxruntime on the test images. Each switch has a sensitivity table of its own, since the choice of widths follows from
it, searched for both sizes. For ResNet20, at the smaller size, also with learned rounding, three minutes a row, unless
--nearest is given.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from figures import CASES, Case, Runner

SWITCHES = {
    "as by default": (),
    "no input weighting": ("--no-input-weighting",),
    "no bias correction": ("--no-bias-correction",),
    "neither": ("--no-input-weighting", "--no-bias-correction"),
    "equalized": ("--equalize",),
    "ranges by squared error": ("--ranges", "mse"),
    "ranges by minimum and maximum": ("--ranges", "minmax"),
}
SIZES = {"resnet20": (".145", ".115"), "mobilenetv2": (".16", ".14")}
_LEARNED = ("resnet20",)


def run(case: Case, *, learned: bool) -> None:
    """Print the table of one model; learned: with learned rounding as well."""
    with tempfile.TemporaryDirectory() as name:
        runner = Runner(case, Path(name))
        table = str(Path(name) / "sensitivity.json")
        for label, options in SWITCHES.items():
            first, *others = SIZES[case.name]
            data = ("--data", runner.calibration)
            found = runner.quantize("--size", first, *data, "--tune", "none", *options, "--save-sensitivity", table)
            runner.row(f"{case.name} {first} {label}", *found)
            for size in others:
                found = runner.quantize("--size", size, "--from-sensitivity", table)
                runner.row(f"{case.name} {size} {label}", *found)
            if learned:
                found = runner.quantize("--size", others[-1], *data, "--from-sensitivity", table)
                runner.row(f"{case.name} {others[-1]} {label}, learned", *found)


if __name__ == "__main__":
    names = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    for wanted in CASES:
        if wanted.name in (names or SIZES):
            run(wanted, learned=wanted.name in _LEARNED and "--nearest" not in sys.argv)
