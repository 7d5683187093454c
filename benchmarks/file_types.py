"""Magika, which tells the type of a file by its bytes: `--data file_types.py:calibration` and `:test`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from packages import package_file
from real_data import data_folder

Batch = dict[str, NDArray[np.generic]]
_CALIBRATION = 200
_CHUNK = 100


def model() -> str:
    """The classifier's file."""
    return str(package_file("magika", "magika/models/standard_v3_3/model.onnx"))


def _split() -> tuple[NDArray[np.int32], NDArray[np.str_], NDArray[np.intp]]:
    with np.load(data_folder() / "magika_eval.npz", allow_pickle=False) as archive:
        bytes_, kinds = archive["X"], archive["y"]
    return bytes_, kinds, np.random.default_rng(0).permutation(len(kinds))


def calibration() -> Iterator[Batch]:
    """200 files without labels."""
    found, _, order = _split()
    yield {"bytes": found[order[:_CALIBRATION]]}


def test() -> Iterator[Batch]:
    """The other 1,397 files, labelled."""
    found, kinds, order = _split()
    config = json.loads(package_file("magika", "magika/models/standard_v3_3/config.min.json").read_text())
    names = {name: number for number, name in enumerate(config["target_labels_space"])}
    labels = np.array([names[kind] for kind in kinds])
    for start in range(_CALIBRATION, len(order), _CHUNK):
        chosen = order[start : start + _CHUNK]
        yield {"bytes": found[chosen], "labels": labels[chosen]}
