"""Data of the shipped models: scikit-learn's handwritten digits, split once and for all.

Both functions serve as `--data`: `models/digits.py:calibration` and `models/digits.py:test`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

Batch = dict[str, NDArray[np.generic]]

# Mean and standard deviation of all pixels (0 to 16), so that the inputs have mean 0 and deviation 1.
MEAN = 4.884
DEVIATION = 6.017
TEST_IMAGES = 500
CALIBRATION_IMAGES = 256
_BATCH = 64


def split() -> tuple[Batch, Batch]:
    """Training and test images with their labels; the last 500 of a seeded permutation are for the test."""
    digits = load_digits()
    images = ((digits.images - MEAN) / DEVIATION).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = order[:-TEST_IMAGES], order[-TEST_IMAGES:]
    return (
        {"image": images[train], "labels": labels[train]},
        {"image": images[test], "labels": labels[test]},
    )


def calibration() -> Iterator[Batch]:
    """256 training images, without labels."""
    train, _ = split()
    for start in range(0, CALIBRATION_IMAGES, _BATCH):
        yield {"image": train["image"][start : min(start + _BATCH, CALIBRATION_IMAGES)]}


def test() -> Iterator[Batch]:
    """The 500 test images, with labels."""
    _, held_out = split()
    for start in range(0, TEST_IMAGES, _BATCH):
        yield {name: array[start : start + _BATCH] for name, array in held_out.items()}
