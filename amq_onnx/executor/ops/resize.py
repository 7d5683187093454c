"""Resize and Upsample, one axis after the other, as weighted sums of gathered samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from amq_onnx.executor.narrow import straight_through
from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator
from amq_onnx.executor.types import RANGES


def _position(i: int, mode: str, scale: float, length: int, size: int, roi: tuple[float, float]) -> float:
    """Where output i of `size` lies in an input axis of `length` (coordinate_transformation_mode)."""
    if mode == "asymmetric":
        return i / scale
    if mode == "align_corners":
        return 0.0 if size == 1 else i * (length - 1) / (size - 1)
    if mode == "pytorch_half_pixel":
        return (i + 0.5) / scale - 0.5 if size > 1 else 0.0
    if mode == "half_pixel_symmetric":
        adjusted = size / (scale * length)
        return length / 2 * (1 - adjusted) + (i + 0.5) / scale - 0.5
    if mode == "tf_crop_and_resize":
        start, end = roi
        if size == 1:
            return 0.5 * (start + end) * (length - 1)
        return start * (length - 1) + i * (end - start) * (length - 1) / (size - 1)
    return (i + 0.5) / scale - 0.5  # half_pixel


def _nearest(position: float, mode: str) -> int:
    if mode == "floor":
        return math.floor(position)
    if mode == "ceil":
        return math.ceil(position)
    if mode == "round_prefer_ceil":
        return math.floor(position + 0.5)
    return math.ceil(position - 0.5)  # round_prefer_floor


def _cubic(distance: float, a: float) -> float:
    d = abs(distance)
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return (((d - 5) * d + 8) * d - 4) * a if d < 2 else 0.0


def _samples(node: NodeContext, position: float, scale: float, length: int) -> dict[int, float]:
    """Which input samples make up the output at `position`, and their weights."""
    mode = node.text("mode", "nearest")
    if mode == "nearest":
        default = "round_prefer_floor" if node.op_type == "Resize" and node.opset >= 11 else "floor"
        place = _nearest(position, node.text("nearest_mode", default))
        return {min(max(place, 0), length - 1): 1.0}
    stretch = min(scale, 1.0) if node.integer("antialias") else 1.0
    a = node.number("cubic_coeff_a", -0.75)
    support = (2.0 if mode == "cubic" else 1.0) / stretch
    weights: dict[int, float] = {}
    total = 0.0
    for place in range(math.floor(position - support) + 1, math.ceil(position + support)):
        distance = (place - position) * stretch
        weight = _cubic(distance, a) if mode == "cubic" else max(1 - abs(distance), 0.0)
        if node.integer("exclude_outside") and not 0 <= place < length:
            continue
        total += weight
        inside = min(max(place, 0), length - 1)
        weights[inside] = weights.get(inside, 0.0) + weight
    return {place: weight / total for place, weight in weights.items()}


def _resize_axis(
    node: NodeContext, x: Tensor, axis: int, scale: float, size: int, roi: tuple[float, float], mode: str
) -> Tensor:
    length = x.shape[axis]
    positions = [_position(i, mode, scale, length, size, roi) for i in range(size)]
    outside = [mode == "tf_crop_and_resize" and not 0 <= p <= length - 1 for p in positions]
    rows = [_samples(node, position, scale, length) for position in positions]
    taps = max(len(row) for row in rows)
    places = [list(row) + [0] * (taps - len(row)) for row in rows]
    weights = [list(row.values()) + [0.0] * (taps - len(row)) for row in rows]
    index = torch.tensor(places, dtype=torch.int64, device=x.device)
    shape = [1] * x.dim()
    shape[axis] = size
    if node.text("mode", "nearest") == "nearest":
        y = x.index_select(axis, index[:, 0])
    else:
        factors = torch.tensor(weights, dtype=x.dtype, device=x.device)
        y = x.index_select(axis, index[:, 0]) * factors[:, 0].reshape(shape)
        for tap in range(1, taps):
            y = y + x.index_select(axis, index[:, tap]) * factors[:, tap].reshape(shape)
    if any(outside):
        fill = node.number("extrapolation_value")
        y = torch.where(torch.tensor(outside, device=x.device).reshape(shape), torch.full_like(y, fill), y)
    return y


def _resize(
    node: NodeContext, x: Tensor, scales: dict[int, float], sizes: dict[int, int], roi: Any, mode: str
) -> Tensor:
    """Resize the axes of `scales`, to `sizes` where given and to floor(length * scale) otherwise."""
    for position, (axis, scale) in enumerate(scales.items()):
        length = x.shape[axis]
        bounds = (roi[position], roi[position + len(scales)]) if roi else (0.0, 1.0)
        span = length * (bounds[1] - bounds[0]) if mode == "tf_crop_and_resize" else length
        size = sizes.get(axis, math.floor(span * scale))
        if size != length or mode == "tf_crop_and_resize" or scale != 1:
            x = _resize_axis(node, x, axis, scale, size, bounds, mode)
    return x


@operator("Resize", host=(1, 2, 3), codes=True)
def resize(node: NodeContext, x: Tensor, *inputs: Any) -> Tensor:
    """Modes nearest, linear, cubic, with every coordinate transformation; antialias; sizes or scales."""
    kept = x.dtype
    x = x if x.is_floating_point() else x.to(node.dtype)
    if node.opset < 11:
        scales = dict(enumerate(inputs[0]))
        return _resize(node, x, scales, {}, None, "asymmetric").to(kept)
    roi, given, wanted = (*inputs, None, None, None)[:3]
    axes = [axis % x.dim() for axis in node.integers("axes") or range(x.dim())]
    mode = node.text("coordinate_transformation_mode", "half_pixel")
    sizes: dict[int, int] = {}
    if wanted:
        sizes = dict(zip(axes, wanted, strict=True))
        ratios = [size / x.shape[axis] for axis, size in sizes.items()]
        policy = node.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            ratio = min(ratios) if policy == "not_larger" else max(ratios)
            ratios = [ratio] * len(axes)
            sizes = {axis: math.floor(ratio * x.shape[axis] + 0.5) for axis in axes}
        scales = dict(zip(axes, ratios, strict=True))
    else:
        scales = dict(zip(axes, given, strict=True))
    y = _resize(node, x, scales, sizes, roi, mode)
    if node.input_types[0] in RANGES:  # integers, or codes, which are held as floats
        y = straight_through(y, torch.round)
    return y.to(kept)


@operator("Upsample", host=(1,))
def upsample(node: NodeContext, x: Tensor, scales: list[float] | None = None) -> Tensor:
    """The forerunner of Resize, up to opset 9."""
    factors = node.numbers("scales") if scales is None else scales
    return _resize(node, x, dict(enumerate(factors or [])), {}, None, "asymmetric")
