"""Models, data and sizes that `sensitivity.py` compares methods on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import file_types
import numpy as np
from real_data import Batch, data_folder
from resnet20 import training_images

from amq_onnx.measurement_options import SensitivityOptions

_HERE = Path(__file__).resolve().parent
BRUTE_INPUTS = 64


@dataclass(frozen=True)
class Case:
    """A model, its data, on how many held-out samples sites and plans are measured, and the sizes of the plans.

    inputs: of brute force, 0 for none. options: of our methods. by_default: whether it's run where no model is named.
    """

    name: str
    model: Callable[[], str]
    calibration: str
    held_out: str
    samples: int
    plan_samples: int
    sizes: tuple[float, ...]
    labelled: str | None = None
    inputs: int = BRUTE_INPUTS
    options: SensitivityOptions = field(default_factory=SensitivityOptions)
    by_default: bool = True


def _script(name: str, function: str) -> str:
    return f"{_HERE / name}:{function}"


_DIGITS = _HERE.parent / "models"
CASES = (
    Case(
        "resnet20",
        lambda: str(data_folder() / "resnet20_cifar10_op20.onnx"),
        _script("real_data.py", "resnet20_calibration"),
        _script("real_data.py", "resnet20_test"),
        1000,
        3000,
        (0.18, 0.145, 0.13, 0.115),
        _script("resnet20.py", training_images.__name__),
    ),
    Case(
        "transformer",
        lambda: str(_DIGITS / "digits_transformer.onnx"),
        f"{_DIGITS / 'digits.py'}:calibration",
        _script("sensitivity_cases.py", "other_digits"),
        1000,
        1541,
        (0.22, 0.18, 0.16, 0.14),
        _script("sensitivity_cases.py", "labelled_digits"),
    ),
    Case(
        "magika",
        file_types.model,
        _script("file_types.py", "calibration"),
        _script("file_types.py", "test"),
        600,
        1397,
        (0.2, 0.16, 0.14, 0.12),
    ),
    Case(
        "mobilenetv2",
        lambda: str(data_folder() / "mobilenetv2_imagenet_op20.onnx"),
        _script("real_data.py", "mobilenetv2_calibration"),
        _script("real_data.py", "mobilenetv2_test"),
        24,
        128,
        (0.2, 0.15),
        inputs=0,
        options=SensitivityOptions(samples=64, max_probes=4),
        by_default=False,
    ),
)


def labelled_digits() -> Iterator[Batch]:
    """The calibration images of the digits with their labels."""
    digits = _digits()
    train, _ = digits.split()
    yield {name: array[: digits.CALIBRATION_IMAGES] for name, array in train.items()}


def other_digits() -> Iterator[Batch]:
    """All 1,541 images of digits that aren't calibrated on, without labels: test images first."""
    digits = _digits()
    train, test = digits.split()
    yield {"image": np.concatenate([test["image"], train["image"][digits.CALIBRATION_IMAGES :]])}


def _digits() -> ModuleType:
    sys.path.insert(0, str(_DIGITS))
    return importlib.import_module("digits")
