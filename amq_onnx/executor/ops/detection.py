"""The choice among boxes that overlap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.shape import scalar
from amq_onnx.executor.registry import operator


def _corners(boxes: Tensor, centred: bool) -> Tensor:
    """Boxes [*, 4] as two opposite corners in any order, or as centre and size -> low, high corners [*, 4]."""
    first, second = boxes.chunk(2, -1)
    if centred:
        return torch.cat([first - second / 2, first + second / 2], -1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], -1)


def _overlap(box: Tensor, boxes: Tensor) -> Tensor:
    """Intersection over union of one box [4] and others [B, 4]."""
    low, high = torch.maximum(box[:2], boxes[:, :2]), torch.minimum(box[2:], boxes[:, 2:])
    common = torch.clamp(high - low, min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    union = (box[2:] - box[:2]).prod() + areas - common
    return torch.where(union > 0, common / union, torch.zeros_like(union))


def _kept(boxes: Tensor, scores: Tensor, most: int, threshold: float, least_score: float | None) -> list[int]:
    """Indices of the boxes of one class that stay, best first."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if least_score is not None:
        order = order[scores[order] > least_score]
    kept: list[int] = []
    while order.numel() and len(kept) < most:
        best = order[0]
        kept.append(int(best))
        order = order[1:]
        order = order[_overlap(boxes[best], boxes[order]) <= threshold]
    return kept


@operator("NonMaxSuppression", host=(2, 3, 4))
def non_max_suppression(
    node: NodeContext,
    boxes: Tensor,
    scores: Tensor,
    most: Any = None,
    threshold: Any = None,
    least_score: Any = None,
) -> Tensor:
    """boxes [N, B, 4], scores [N, classes, B] -> [selected, 3] as image, class, box; on the CPU, one box at a time.

    Greedy: the best box stays, and those that overlap it by more than the threshold go.
    """
    count = 0 if most is None else int(scalar(most))
    overlap = 0.0 if threshold is None else float(scalar(threshold))
    least = None if least_score is None else float(scalar(least_score))
    corners = _corners(boxes.detach().cpu(), bool(node.integer("center_point_box")))
    rated = scores.detach().cpu()
    selected = [
        [image, label, box]
        for image in range(rated.shape[0])
        for label in range(rated.shape[1])
        for box in _kept(corners[image], rated[image, label], count, overlap, least)
    ]
    return torch.tensor(selected, dtype=torch.int64, device=boxes.device).reshape(-1, 3)
