"""NudeNet's 320n, a YOLOv8n, on photographs: what a file of it finds of what the float model finds.

`--data yolov8n.py:calibration`, `--eval yolov8n.py:test`, `--metric yolov8n.py:average_precision`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from packages import package_file
from PIL import Image
from real_data import photographs

sys.path.append(str(Path(__file__).resolve().parent.parent / "models"))
from detection_metric import Detections, detections, precisions_of

Batch = dict[str, NDArray[Any]]
_SIDE = 320
_CALIBRATION, _TEST = 64, 300
# What the float model finds with as high a score is the truth.
_SURE = 0.25


def model() -> str:
    """The model's file."""
    return str(package_file("nudenet", "nudenet/320n.onnx"))


def calibration() -> Iterator[Batch]:
    """64 photographs without labels."""
    return ({"images": image} for image in _images("calibration", _CALIBRATION))


def test() -> Iterator[Batch]:
    """300 others, labelled with what the float model finds in them: [1, 32, 5], class, x1, y1, x2, y2; -1 for none."""
    session = onnxruntime.InferenceSession(model(), providers=["CPUExecutionProvider"])
    for image in _images("test", _TEST):
        kinds, scores, boxes = _found(session.run(None, {"images": image})[0][0])
        labels = np.full((1, 32, 5), -1, np.float32)
        sure = np.flatnonzero(scores >= _SURE)[: labels.shape[1]]
        labels[0, : len(sure)] = np.concatenate([kinds[sure, None], boxes[sure]], 1)
        yield {"images": image, "labels": labels}


def average_precision(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> float:
    """COCO's AP at half overlap, 0 to 1. outputs: `output0` [n, 4 + classes, anchors], boxes' middles and sizes in
    pixels and probabilities."""
    assert labels is not None
    found = outputs["output0"]
    return precisions_of([_found(each) for each in found], labels, found.shape[1] - 4)[1]


def _images(split: str, count: int) -> Iterator[NDArray[np.float32]]:
    """Photographs [1, 3, 320, 320], 0 to 1."""
    for photograph, _ in zip(photographs(split), range(count), strict=False):
        pixels = np.asarray(photograph.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC), np.float32) / 255
        yield np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def _found(output: NDArray[np.float32]) -> Detections:
    middles, sizes, likely = output[:2].T, output[2:4].T, np.clip(output[4:].T, 1e-6, 1 - 1e-6)
    boxes = np.concatenate([middles - sizes / 2, middles + sizes / 2], 1)
    return detections(np.log(likely / (1 - likely)), boxes)
