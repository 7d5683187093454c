"""Operators that read tensors at fractional positions: GridSample, DeformConv, RoiAlign, and pooling of regions.

torch's own kernels have no second derivative, so a sample is written out as a weighted sum of gathered elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.windows import resolved_pads
from amq_onnx.executor.registry import operator

_GATHERED = 2**22  # elements picked at once for regions: few enough to stay in the cache
Tap = tuple[Tensor, Tensor]  # for each sample its place along one axis, and the weight of what is there


def _sampled(x: Tensor, taps: Sequence[Sequence[Tap]]) -> Tensor:
    """Samples [N, C, P] of x [N, C, *spatial]; taps: for each spatial axis the places and weights [N, P]."""
    flat = x.flatten(2)
    total: Tensor | None = None
    for combination in product(*taps):
        place, weight = combination[0]
        for (index, factor), length in zip(combination[1:], x.shape[3:], strict=True):
            place, weight = place * length + index, weight * factor
        picked = torch.gather(flat, 2, place.unsqueeze(1).expand(-1, x.shape[1], -1)) * weight.unsqueeze(1)
        total = picked if total is None else total + picked
    assert total is not None
    return total


def _reflected(position: Tensor, low: float, high: float) -> Tensor:
    """position mirrored at `low` and `high` until it lies between them."""
    if high <= low:
        return torch.zeros_like(position)
    phase = torch.remainder(position - low, 2 * (high - low))
    return torch.where(phase > high - low, 2 * (high - low) - phase, phase) + low


def _cubic_weight(distance: Tensor, a: float = -0.75) -> Tensor:
    """The weight of an element at 0 <= distance <= 2 (Keys, 1981, eq. 4, with a = -0.75)."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * a
    return torch.where(distance <= 1, near, far)


def _taps(position: Tensor, length: int, mode: str, padding: str, aligned: bool) -> list[Tap]:
    """The elements, and their weights, that make up samples at `position`, in units of elements of an axis."""
    low, high = (0.0, length - 1.0) if aligned else (-0.5, length - 0.5)

    def brought_in(place: Tensor) -> Tensor:
        if padding == "reflection":
            place = _reflected(place, low, high)
        return place if padding == "zeros" else torch.clamp(place, 0, length - 1)

    if mode != "cubic":
        position = brought_in(position)
    if mode == "nearest":
        places = [torch.round(position)]
        weights = [torch.ones_like(position)]
    else:
        first = torch.floor(position)
        reach = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
        places = [first + step for step in reach]
        distances = [torch.abs(position - place) for place in places]
        weights = [1 - d if mode == "linear" else _cubic_weight(d) for d in distances]
        if mode == "cubic":
            places = [brought_in(place) for place in places]
    taps = []
    for place, weight in zip(places, weights, strict=True):
        inside = (place >= 0) & (place <= length - 1)
        taps.append((torch.clamp(place, 0, length - 1).to(torch.int64), torch.where(inside, weight, 0.0)))
    return taps


@operator("GridSample")
def grid_sample(node: NodeContext, x: Tensor, grid: Tensor) -> Tensor:
    """x [N, C, *spatial] at grid [N, *out, rank]: positions from -1 to 1, last axis of x first -> [N, C, *out]."""
    mode = node.text("mode", "linear")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode)
    padding, aligned = node.text("padding_mode", "zeros"), bool(node.integer("align_corners"))
    taps = []
    for axis, length in enumerate(x.shape[2:]):
        position = grid[..., x.dim() - 3 - axis].flatten(1)
        position = (position + 1) / 2 * (length - 1) if aligned else ((position + 1) * length - 1) / 2
        taps.append(_taps(position, length, mode, padding, aligned))
    return _sampled(x, taps).reshape(*x.shape[:2], *grid.shape[1:-1])


@operator("AffineGrid", host=(1,))
def affine_grid(node: NodeContext, theta: Tensor, size: list[int]) -> Tensor:
    """theta [N, rank, rank + 1] times the positions of an image of size [N, C, *spatial] -> [N, *spatial, rank]."""
    axes = []
    for length in size[2:]:
        steps = torch.arange(length, dtype=theta.dtype, device=theta.device)
        if node.integer("align_corners") and length > 1:
            axes.append(steps * (2 / (length - 1)) - 1)
        else:
            axes.append((2 * steps + 1) / length - 1)
    places = torch.stack([*torch.meshgrid(*axes, indexing="ij")][::-1], -1)
    matrix, shift = theta[..., :-1], theta[..., -1]
    grid = torch.matmul(places.reshape(1, -1, places.shape[-1]), matrix.transpose(1, 2)) + shift.unsqueeze(1)
    return grid.reshape(theta.shape[0], *places.shape)


@operator("DeformConv")
def deform_conv(
    node: NodeContext, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """x [N, C, *spatial], weight [M, C/group, *kernel] -> [N, M, *out] (Dai et al., 2017; mask: Zhu et al., 2019).

    offset [N, offset_group * K * rank, *out] moves each of the K places of the kernel, mask
    [N, offset_group * K, *out] weighs what is found there; outside x are zeros.
    """
    kernel = list(weight.shape[2:])
    rank, count = len(kernel), prod(kernel)
    strides, dilations = node.integers("strides") or [1] * rank, node.integers("dilations") or [1] * rank
    pads = resolved_pads(node, x.shape[2:], kernel, strides, dilations)
    groups, parts = node.integer("group", 1), node.integer("offset_group", 1)
    out = offset.shape[2:]
    moves = offset.reshape(x.shape[0] * parts, count, rank, *out)
    taps = []
    for axis in range(rank):
        start = torch.arange(out[axis], dtype=x.dtype, device=x.device) * strides[axis] - pads[axis]
        within = torch.arange(kernel[axis], dtype=x.dtype, device=x.device) * dilations[axis]
        starts = start.reshape([-1 if i == axis else 1 for i in range(rank)])
        steps = within.reshape([-1 if i == axis else 1 for i in range(rank)]).expand(kernel)
        position = moves[:, :, axis] + steps.reshape([count] + [1] * rank) + starts
        taps.append(_taps(position.flatten(1), x.shape[2 + axis], "linear", "zeros", False))
    samples = _sampled(x.reshape(-1, x.shape[1] // parts, *x.shape[2:]), taps)
    if mask is not None:
        samples = samples * mask.reshape(samples.shape[0], 1, -1)
    columns = samples.reshape(x.shape[0], groups, -1, prod(out))
    y = torch.matmul(weight.reshape(groups, weight.shape[0] // groups, -1), columns)
    y = y.reshape(x.shape[0], -1, *out)
    return y if bias is None else y + bias.reshape([-1] + [1] * rank)


def _region_taps(
    node: NodeContext, start: Tensor, end: Tensor, length: int, count: int, halfway: bool
) -> tuple[Tap, Tensor]:
    """Taps [regions, count, T] of the cells of each region along one axis, and the samples in a cell [regions].

    A region that takes fewer samples than the largest one has weights of 0 for the rest.
    """
    extent = end - start if halfway else torch.clamp(end - start, min=1.0)
    fixed = node.integer("sampling_ratio")
    samples = torch.full_like(extent, fixed) if fixed > 0 else torch.ceil(extent.detach() / count)
    most = int(samples.max()) if samples.numel() else 0
    cells = torch.arange(count, dtype=start.dtype, device=start.device)[:, None]
    i = torch.arange(most, dtype=start.dtype, device=start.device)
    steps = (i + 0.5) / torch.clamp(samples, min=1)[:, None, None]
    position = start[:, None, None] + (cells + steps) * (extent / count)[:, None, None]
    used = (i < samples[:, None, None]) & (position >= -1) & (position <= length)
    taps = _taps(torch.clamp(position, min=0), length, "linear", "border", True)
    places = torch.cat([place for place, _ in taps], -1)
    return (places, torch.cat([torch.where(used, weight, 0.0) for _, weight in taps], -1)), samples


def _merged(tap: Tap, length: int) -> Tap:
    """Taps [regions, count, T] of the same sums with each place once, where that makes fewer of them."""
    places, weights = tap
    if not places.numel():
        return tap
    first = torch.where(weights != 0, places, length).amin(-1, keepdim=True)
    last = torch.where(weights != 0, places, -1).amax(-1, keepdim=True)
    width = int(torch.clamp(last - first + 1, min=1).max())
    if width >= places.shape[-1]:
        return tap
    sums = torch.zeros(*places.shape[:2], length, dtype=weights.dtype, device=weights.device)
    sums = sums.scatter_add(2, places, weights)
    window = first + torch.arange(width, device=places.device)
    inside = torch.clamp(window, 0, length - 1)
    return inside, torch.where(window <= last, torch.gather(sums, 2, inside), 0.0)


def _over_regions(x: Tensor, batch: Tensor, down: Tap, across: Tap, largest: bool) -> Tensor:
    """x [N, C, H, W] at the pairs of taps [R, h, T], [R, w, T] of each cell, summed or the largest -> [R, C, h, w]."""
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    (y, y_weight), (z, z_weight) = down, across
    sizes, taps = (y.shape[1], z.shape[1]), y.shape[2] * z.shape[2]
    if not taps or not y.shape[0]:
        return x.new_zeros(y.shape[0], x.shape[1], *sizes)
    parts = []
    step = max(_GATHERED // (prod(sizes) * taps * x.shape[1]), 1)
    for part in (slice(i, i + step) for i in range(0, y.shape[0], step)):
        place = batch[part].reshape(-1, 1, 1, 1, 1) * x.shape[2] + y[part, :, None, :, None]
        place = place * x.shape[3] + z[part, None, :, None, :]
        weight = (y_weight[part, :, None, :, None] * z_weight[part, None, :, None, :]).reshape(-1, 1, taps)
        picked = rows.index_select(0, place.flatten()).reshape(-1, taps, x.shape[1])
        cells = (picked * weight.transpose(1, 2)).amax(1) if largest else torch.bmm(weight, picked)
        parts.append(cells.reshape(-1, *sizes, x.shape[1]))
    return torch.cat(parts).permute(0, 3, 1, 2)


@operator("RoiAlign")
def roi_align(node: NodeContext, x: Tensor, rois: Tensor, batch: Tensor) -> Tensor:
    """x [N, C, H, W], rois [R, 4] as x1, y1, x2, y2 in image `batch` [R] -> [R, C, height, width].

    Means of bilinear samples (He et al., 2017, sec. 3), or the largest weighted neighbour of any, as onnxruntime
    takes it. Before opset 16 regions start at whole positions.
    """
    halfway = node.opset >= 16 and node.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    height, width = node.integer("output_height", 1), node.integer("output_width", 1)
    left, top, right, bottom = (rois * node.number("spatial_scale", 1.0) - (0.5 if halfway else 0.0)).unbind(1)
    down, rows = _region_taps(node, top, bottom, x.shape[2], height, halfway)
    across, columns = _region_taps(node, left, right, x.shape[3], width, halfway)
    if node.text("mode", "avg") == "max":
        return _over_regions(x, batch.to(torch.int64), down, across, True)
    down, across = _merged(down, x.shape[2]), _merged(across, x.shape[3])
    y = _over_regions(x, batch.to(torch.int64), down, across, False)
    return y / torch.clamp(rows * columns, min=1).reshape(-1, 1, 1, 1)


def _bins(start: Tensor, end: Tensor, length: int, count: int) -> tuple[Tap, Tensor]:
    """The places [R, count, T] in each bin of MaxRoiPool along one axis, of weight 1, and which bins are empty."""
    extent = torch.clamp(end - start + 1, min=1.0) / count
    cells = torch.arange(count, dtype=start.dtype, device=start.device)
    first = torch.floor(cells * extent[:, None]) + start[:, None]
    last = torch.ceil((cells + 1) * extent[:, None]) + start[:, None]
    first, last = (torch.clamp(value, 0, length).to(torch.int64) for value in (first, last))
    steps = torch.arange(int((last - first).max()) if first.numel() else 0, device=start.device)
    places = torch.minimum(first[..., None] + steps, last[..., None] - 1)  # a place again is no larger
    return (torch.clamp(places, 0, length - 1), torch.ones_like(places, dtype=start.dtype)), last <= first


@operator("MaxRoiPool")
def max_roi_pool(node: NodeContext, x: Tensor, rois: Tensor) -> Tensor:
    """x [N, C, H, W], rois [R, 5] as image, x1, y1, x2, y2 -> maxima [R, C, *pooled_shape] (Girshick, 2015)."""
    height, width = node.integers("pooled_shape") or [1, 1]
    left, top, right, bottom = torch.round(rois[:, 1:].detach() * node.number("spatial_scale", 1.0)).unbind(1)
    down, no_rows = _bins(top, bottom, x.shape[2], height)
    across, no_columns = _bins(left, right, x.shape[3], width)
    y = _over_regions(x, rois[:, 0].to(torch.int64), down, across, True)
    return torch.where((no_rows[:, :, None] | no_columns[:, None, :]).unsqueeze(1), 0.0, y)
