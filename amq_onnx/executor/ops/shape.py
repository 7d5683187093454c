"""Operators that rearrange, cut and join tensors, or make them from a shape."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


def _as_list(value: int | list[int]) -> list[int]:
    return value if isinstance(value, list) else [value]


def scalar(value: Any) -> Any:
    """A number that a file may hold as a tensor of one element."""
    while isinstance(value, list):
        value = value[0]
    return value


@operator("Shape")
def shape(node: NodeContext, x: Tensor) -> Tensor:
    """On the CPU, so that arithmetic on shapes stays cheap."""
    end = node.attributes.get("end")
    return torch.tensor(list(x.shape)[node.integer("start") : end], dtype=torch.int64)


@operator("Size")
def size(node: NodeContext, x: Tensor) -> Tensor:
    """The number of elements, on the CPU."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@operator("Reshape", host=(1,), codes=True)
def reshape(node: NodeContext, x: Tensor, sizes: list[int]) -> Tensor:
    """0 keeps a dimension (unless allowzero), -1 is inferred."""
    if 0 in sizes and not node.integer("allowzero"):
        sizes = [x.shape[i] if wanted == 0 else wanted for i, wanted in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten", codes=True)
def flatten(node: NodeContext, x: Tensor) -> Tensor:
    """[product of the axes before `axis`, product of the rest]."""
    axis = node.integer("axis", 1)
    axis = axis + x.dim() if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose", codes=True)
def transpose(node: NodeContext, x: Tensor) -> Tensor:
    """Axes in the order `perm`, reversed by default."""
    order = node.integers("perm")
    return x.permute(list(range(x.dim()))[::-1] if order is None else order)


@operator("Squeeze", host=(1,), codes=True)
def squeeze(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """Without the axes given (an attribute before opset 13), or without all of length 1."""
    axes = node.integers("axes") if axes is None else axes
    return torch.squeeze(x) if axes is None else torch.squeeze(x, tuple(_as_list(axes)))


@operator("Unsqueeze", host=(1,), codes=True)
def unsqueeze(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """With new axes at the places given (an attribute before opset 13)."""
    axes = _as_list(node.integers("axes") or [] if axes is None else axes)
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat", codes=True)
def concat(node: NodeContext, *inputs: Tensor) -> Tensor:
    """Inputs joined along `axis`."""
    return torch.cat(inputs, node.integer("axis"))


@operator("Split", host=(1,), codes=True)
def split(node: NodeContext, x: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
    """Equal parts where no sizes are given, the last one smaller if need be."""
    axis = node.integer("axis")
    sizes = node.integers("split") if sizes is None else sizes
    if sizes is None:
        parts = node.integer("num_outputs", len(node.outputs))
        length = x.shape[axis]
        chunk = -(-length // parts)
        sizes = [max(min(chunk, length - i * chunk), 0) for i in range(parts)]
    return torch.split(x, sizes, axis)


def _broadcast(a: list[int], b: list[int]) -> list[int]:
    """The shape that a and b broadcast to; torch checks that they do."""
    rank = max(len(a), len(b))
    a, b = [1] * (rank - len(a)) + a, [1] * (rank - len(b)) + b
    return [n if m == 1 else m for n, m in zip(a, b, strict=True)]


@operator("Expand", host=(1,), codes=True)
def expand(node: NodeContext, x: Tensor, sizes: list[int]) -> Tensor:
    """Broadcast both ways: a 1 in `sizes` keeps x's dimension."""
    return x.expand(_broadcast(list(x.shape), sizes))


@operator("Tile", host=(1,), codes=True)
def tile(node: NodeContext, x: Tensor, repeats: list[int]) -> Tensor:
    """x repeated along each axis."""
    return x.repeat(repeats)


@operator("Slice", host=(1, 2, 3, 4), codes=True)
def slice_(
    node: NodeContext,
    x: Tensor,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
    steps: list[int] | None = None,
) -> Tensor:
    """numpy's slices, negative steps included. Everything is an attribute before opset 10."""
    if starts is None or ends is None:
        starts, ends, axes = node.integers("starts") or [], node.integers("ends") or [], node.integers("axes")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cut = [slice(None)] * x.dim()
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            cut[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
        else:
            places = range(*slice(start, end, step).indices(x.shape[axis]))
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x[tuple(cut)] if cut else x


@operator("Pad", host=(1, 3), literal=(2,), codes=True)
def pad(
    node: NodeContext,
    x: Tensor,
    pads: list[int] | None = None,
    value: Tensor | float | None = None,
    axes: list[int] | None = None,
) -> Tensor:
    """pads [begins, ends], negative ones cut; constant, reflect, edge or wrap. Attributes before opset 11."""
    if pads is None:
        pads, value = node.integers("pads") or [], node.number("value", 0.0)
    places = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
    count = len(places)
    begins, ends = [0] * x.dim(), [0] * x.dim()
    for i, axis in enumerate(places):
        begins[axis], ends[axis] = pads[i], pads[count + i]
    mode = node.text("mode", "constant")
    if mode == "constant":
        order = [amount for axis in reversed(range(x.dim())) for amount in (begins[axis], ends[axis])]
        if isinstance(value, Tensor):
            inside = F.pad(torch.ones(x.shape, dtype=torch.uint8, device=x.device), order).to(torch.bool)
            return torch.where(inside, F.pad(x, order), value.reshape(()))
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), order, value=int(value or 0)).to(torch.bool)
        return F.pad(x, order, value=value or 0)
    for axis in places:
        if begins[axis] or ends[axis]:
            index = _padded_index(node, x.shape[axis], begins[axis], ends[axis], mode)
            x = x.index_select(axis, torch.tensor(index, dtype=torch.int64, device=x.device))
    return x


def _padded_index(node: NodeContext, length: int, begin: int, end: int, mode: str) -> list[int]:
    """Where each element of a padded axis comes from."""
    positions = range(-begin, length + end)
    if mode == "edge":
        return [min(max(i, 0), length - 1) for i in positions]
    if mode == "wrap":
        return [i % length for i in positions]
    if mode != "reflect":
        raise node.unsupported(f"mode {mode}")
    period = max(2 * (length - 1), 1)
    return [min(i % period, period - i % period) if length > 1 else 0 for i in positions]


@operator("CenterCropPad", host=(1,), codes=True)
def center_crop_pad(node: NodeContext, x: Tensor, sizes: list[int]) -> Tensor:
    """x cut or filled up with zeros to `sizes` along `axes`; what is odd is cut or added at the end."""
    axes = node.integers("axes") or list(range(x.dim()))
    pads = [[0, 0] for _ in range(x.dim())]
    for axis, size in zip(axes, sizes, strict=True):
        extra = size - x.shape[axis]
        begin = extra // 2 if extra > 0 else -(-extra // 2)
        pads[axis] = [begin, extra - begin]
    return F.pad(x, [pad for pair in reversed(pads) for pad in pair])


@operator("DepthToSpace", codes=True)
def depth_to_space(node: NodeContext, x: Tensor) -> Tensor:
    """x [N, C, H, W] -> [N, C/b², H b, W b]."""
    b = node.integer("blocksize")
    n, c, h, w = x.shape
    if node.text("mode", "DCR") == "DCR":
        x = x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, c // b**2, h * b, w * b)


@operator("SpaceToDepth", codes=True)
def space_to_depth(node: NodeContext, x: Tensor) -> Tensor:
    """x [N, C, H, W] -> [N, C b², H/b, W/b]."""
    b = node.integer("blocksize")
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


@operator("Range", host=(0, 1, 2))
def range_(node: NodeContext, start: Any, limit: Any, delta: Any) -> Tensor:
    """start, start + delta, ... below limit."""
    start, limit, delta = scalar(start), scalar(limit), scalar(delta)
    kind = node.output_types[0] or (node.input_types[0] if node.input_types else 0)
    dtype = node.held(kind) if kind else (node.dtype if isinstance(start, float) else torch.int64)
    count = max(math.ceil((limit - start) / delta), 0)
    values: Tensor = torch.arange(count, device=node.device) * delta + start
    return values.to(dtype)


@operator("ConstantOfShape", host=(0,))
def constant_of_shape(node: NodeContext, sizes: list[int]) -> Tensor:
    """A tensor of the given shape, filled with the attribute value."""
    value = node.tensor("value")
    if value is None:
        return torch.zeros(sizes, dtype=node.dtype, device=node.device)
    return value.to(node.device).reshape(()).expand(sizes).clone()


@operator("EyeLike")
def eye_like(node: NodeContext, x: Tensor) -> Tensor:
    """Ones on diagonal k of a matrix of x's shape."""
    kind = node.integer("dtype")
    rows, columns = x.shape
    offset = torch.arange(columns, device=x.device) - torch.arange(rows, device=x.device)[:, None]
    return (offset == node.integer("k")).to(node.held(kind) if kind else x.dtype)


@operator("Trilu", host=(1,), codes=True)
def trilu(node: NodeContext, x: Tensor, k: Any = None) -> Tensor:
    """The upper or lower triangle from diagonal k on."""
    diagonal = 0 if k is None else int(scalar(k))
    return torch.triu(x, diagonal) if node.integer("upper", 1) else torch.tril(x, diagonal)


@operator("OneHot", host=(1,))
def one_hot(node: NodeContext, indices: Tensor, depth: Any, values: Tensor) -> Tensor:
    """values holds [off, on]; an index outside -depth..depth-1 is off everywhere."""
    count = int(scalar(depth))
    axis = node.integer("axis", -1)
    axis = axis + indices.dim() + 1 if axis < 0 else axis
    places = indices.to(torch.int64)
    places = torch.where(places < 0, places + count, places)
    classes = torch.arange(count, device=indices.device).reshape([-1] + [1] * (indices.dim() - axis))
    return torch.where(places.unsqueeze(axis) == classes, values[1], values[0])


@operator("ReverseSequence", codes=True, indices=(1,))
def reverse_sequence(node: NodeContext, x: Tensor, lengths: Tensor) -> Tensor:
    """x with time and batch as its first two axes; the first `lengths[b]` steps of each are reversed."""
    time, batch = node.integer("time_axis", 0), node.integer("batch_axis", 1)
    steps = torch.arange(x.shape[time], device=x.device)[:, None]
    index = torch.where(steps < lengths, lengths - 1 - steps, steps)  # [time, batch]
    index = index if time < batch else index.t()
    index = index.reshape(list(index.shape) + [1] * (x.dim() - 2)).expand(x.shape)
    return torch.gather(x, time, index)
