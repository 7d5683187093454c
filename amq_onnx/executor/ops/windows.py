"""Sliding windows and their padding, shared by convolutions and pooling; registers no operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from amq_onnx.executor.node import NodeContext


def symmetric(pads: Sequence[int]) -> bool:
    """Whether ONNX pads [begins, ends] are the same at both ends and none cuts."""
    rank = len(pads) // 2
    return list(pads[:rank]) == list(pads[rank:]) and min(pads, default=0) >= 0


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX pads [begins, ends] in the order of torch: last axis first, begin and end next to each other."""
    rank = len(pads) // 2
    return [pad for axis in reversed(range(rank)) for pad in (pads[axis], pads[rank + axis])]


def resolved_pads(
    node: NodeContext,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> list[int]:
    """Pads [begins, ends] from the attributes auto_pad and pads."""
    rank = len(kernel)
    auto = node.text("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return node.integers("pads") or [0] * (2 * rank)
    if auto == "VALID":
        return [0] * (2 * rank)
    total = [
        max((-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0)
        for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True)
    ]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if auto == "SAME_UPPER" else large + small


def windows(node: NodeContext, x: Tensor, kernel: Sequence[int]) -> Tensor:
    """What a Conv multiplies its weights with: x [N, C, *spatial] -> [N, C, *places, *kernel], a view of x padded."""
    strides = node.integers("strides") or [1] * len(kernel)
    dilations = node.integers("dilations") or [1] * len(kernel)
    pads = resolved_pads(node, x.shape[2:], kernel, strides, dilations)
    x = F.pad(x, torch_pads(pads))
    for axis, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True)):
        x = x.unfold(2 + axis, (size - 1) * dilation + 1, stride)[..., ::dilation]
    return x
