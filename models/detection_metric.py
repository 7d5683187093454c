"""Mean average precision of a detector's raw heads on scenes, for `--metric
models/detection_metric.py:mean_average_precision`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from anchors import SMALL, Floats, decode, overlaps
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIDE = 128
# COCO's practice: no more boxes an image, and none of a lower score.
_MOST = 100
_LOWEST = 0.05
_NMS_OVERLAP = 0.5

Detections = tuple[NDArray[np.intp], Floats, Floats]
"""Of one image: classes [n], scores [n] and boxes [n, 4], x1, y1, x2, y2."""


def mean_average_precision(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> float:
    """COCO's AP over overlaps .5 to .95, 0 to 1, of scenes of 128x128 px.

    outputs: `scores` [n, anchors, classes], logits, and `boxes` [n, anchors, 4], offsets from anchors.SMALL.
    labels: [n, objects, 5], class, x1, y1, x2, y2; rows of class -1 are none. Raises ValueError without labels, or
    where the outputs have other anchors.
    """
    return average_precisions(outputs, labels)[0]


def average_precisions(outputs: Mapping[str, NDArray[Any]], labels: NDArray[Any] | None) -> tuple[float, float]:
    """The AP of `mean_average_precision`, and that of overlaps of .5 alone."""
    if labels is None:
        raise ValueError("average precision needs labels [scenes, objects, 5]")
    scores, offsets = outputs["scores"], outputs["boxes"]
    anchors = SMALL.boxes(SIDE, SIDE)
    if scores.shape[1] != len(anchors):
        raise ValueError(f"scenes of {SIDE}x{SIDE} px have {len(anchors)} anchors, but the scores {scores.shape[1]}")
    found = [detections(logits, decode(moved, anchors)) for logits, moved in zip(scores, offsets, strict=True)]
    return precisions_of(found, labels, scores.shape[2])


def precisions_of(found: Sequence[Detections], labels: NDArray[Any], classes: int) -> tuple[float, float]:
    """AP over overlaps of .5 to .95, and that of .5 alone, of what was found in each image.

    labels: see `mean_average_precision`.
    """
    rows = [
        {"image_id": image, "category_id": int(kind), "bbox": _corner_and_size(box), "score": float(score)}
        for image, each in enumerate(found)
        for kind, score, box in zip(*each, strict=True)
    ]
    if not rows:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = _truth(labels, classes)
        evaluation = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    # Overlap, recall, class, objects of all sizes, 100 boxes an image; -1 where a class has no objects.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    return _mean(precision), _mean(precision[0])


def detections(scores: Floats, boxes: Floats) -> Detections:
    """What is found in one image, after non-maximum suppression within each class.

    scores: logits [anchors, classes]; boxes: [anchors, 4].
    """
    places, kinds = np.nonzero(scores > np.log(_LOWEST / (1 - _LOWEST)))
    likely = 1 / (1 + np.exp(-scores[places, kinds]))
    order = np.argsort(-likely, kind="stable")
    order = order[suppressed(boxes[places[order]], kinds[order])]
    return kinds[order], likely[order], boxes[places[order]]


def suppressed(boxes: Floats, kinds: NDArray[np.intp]) -> NDArray[np.intp]:
    """Numbers of the boxes [n, 4], best first, that overlap no better one of their kind [n] too much; 100 at most."""
    kept: list[int] = []
    open_ = np.ones(len(boxes), bool)
    while len(kept) < _MOST and open_.any():
        best = int(open_.argmax())
        kept.append(best)
        open_ &= (kinds != kinds[best]) | (overlaps(boxes[best][None], boxes)[0] <= _NMS_OVERLAP)
        open_[best] = False
    return np.array(kept, np.intp)


def _truth(labels: NDArray[Any], classes: int) -> COCO:
    objects = [(image, row) for image, rows in enumerate(labels) for row in rows if row[0] >= 0]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": image} for image in range(len(labels))],
        "categories": [{"id": kind} for kind in range(classes)],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": int(row[0]),
                "bbox": _corner_and_size(row[1:]),
                "area": float((row[3] - row[1]) * (row[4] - row[2])),
                "iscrowd": 0,
            }
            for number, (image, row) in enumerate(objects, 1)
        ],
    }
    truth.createIndex()
    return truth


def _corner_and_size(box: Floats) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def _mean(precision: NDArray[np.float64]) -> float:
    known = precision[precision > -1]
    return float(known.mean()) if len(known) else 0.0
