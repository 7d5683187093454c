"""Calibration data of the evidence: other samples for each EVIDENCE_SEED."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))

Batch = dict[str, NDArray[np.generic]]
_DIGITS = 256
_CIFAR = 512
_BATCH = 64


def digits() -> Iterator[Batch]:
    """256 training images of the digits, without labels."""
    from digits import split

    return _drawn({"image": split()[0]["image"]}, _DIGITS)


def cifar() -> Iterator[Batch]:
    """512 CIFAR-10 training images, without labels."""
    from real_data import resnet20_training

    images = np.concatenate([batch["input"] for batch in resnet20_training()])
    return _drawn({"input": images}, _CIFAR)


def _drawn(samples: Batch, count: int) -> Iterator[Batch]:
    seed = int(os.environ.get("EVIDENCE_SEED", "0"))
    total = len(next(iter(samples.values())))
    chosen = np.random.default_rng(seed).permutation(total)[:count]
    for start in range(0, count, _BATCH):
        yield {name: array[chosen[start : start + _BATCH]] for name, array in samples.items()}
