"""Operators that pick, place, order and find elements."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator

_REDUCTIONS = {"mul": "prod", "max": "amax", "min": "amin"}


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Negative indices count from the end."""
    return torch.remainder(indices, size) if size else indices


@operator("Gather", literal=(1,), codes=True, indices=(1,))
def gather(node: NodeContext, x: Tensor, indices: Tensor | int) -> Tensor:
    """Slices of x along `axis`: shape x[:axis] + indices + x[axis + 1:]."""
    axis = node.integer("axis")
    if isinstance(indices, int):
        return x.select(axis, indices)
    axis = axis % x.dim()
    flat = _wrapped(indices.reshape(-1), x.shape[axis])
    picked = x.index_select(axis, flat)
    return picked if indices.dim() == 1 else picked.reshape(x.shape[:axis] + indices.shape + x.shape[axis + 1 :])


@operator("GatherElements", codes=True, indices=(1,))
def gather_elements(node: NodeContext, x: Tensor, indices: Tensor) -> Tensor:
    """One element of x along `axis` for each index."""
    axis = node.integer("axis")
    return torch.gather(x, axis, _wrapped(indices.to(torch.int64), x.shape[axis]))


def _flat_places(indices: Tensor, sizes: torch.Size) -> Tensor:
    """The flat position in a block of shape `sizes` of each index tuple in indices [..., len(sizes)]."""
    places = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for i, length in enumerate(sizes):
        places = places * length + _wrapped(indices[..., i].to(torch.int64), length)
    return places


@operator("GatherND", codes=True, indices=(1,))
def gather_nd(node: NodeContext, x: Tensor, indices: Tensor) -> Tensor:
    """Slices of x at index tuples: indices [..., depth] after `batch_dims` shared axes."""
    batch, depth = node.integer("batch_dims"), indices.shape[-1]
    outer = x.shape[:batch]
    places = _flat_places(indices, x.shape[batch : batch + depth])
    block = prod(x.shape[batch : batch + depth])
    offset = torch.arange(prod(outer), device=x.device).reshape(list(outer) + [1] * (places.dim() - batch)) * block
    rows = x.reshape(-1, *x.shape[batch + depth :])
    picked = rows.index_select(0, (places + offset).reshape(-1))
    return picked.reshape(indices.shape[:-1] + x.shape[batch + depth :])


@operator("ScatterElements", "Scatter", codes=True, indices=(1,))
def scatter_elements(node: NodeContext, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with single elements along `axis` replaced or reduced."""
    axis, reduction = node.integer("axis"), node.text("reduction", "none")
    places = _wrapped(indices.to(torch.int64), x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    if reduction == "add":
        return x.scatter_add(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction])


@operator("ScatterND", codes=True, indices=(1,))
def scatter_nd(node: NodeContext, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    """x with the slices at index tuples replaced or reduced."""
    depth, reduction = indices.shape[-1], node.text("reduction", "none")
    places = _flat_places(indices, x.shape[:depth]).reshape(-1)
    rows = x.reshape(prod(x.shape[:depth]), -1)
    values = updates.reshape(places.shape[0], -1)
    if reduction == "none":
        result = rows.index_copy(0, places, values)
    elif reduction == "add":
        result = rows.index_add(0, places, values)
    else:
        spread = places[:, None].expand(values.shape)
        result = rows.scatter_reduce(0, spread, values, _REDUCTIONS[reduction])
    return result.reshape(x.shape)


@operator("TensorScatter", codes=True, indices=(2,))
def tensor_scatter(node: NodeContext, cache: Tensor, update: Tensor, starts: Tensor | None = None) -> Tensor:
    """cache [batch, *, length, *] with `update` written along `axis` from starts [batch] on, circular if so asked."""
    axis = node.integer("axis", -2) % cache.dim()
    places = torch.arange(update.shape[axis], device=cache.device)
    places = places.reshape([-1 if i == axis else 1 for i in range(cache.dim())])
    if starts is not None:
        places = places + starts.to(torch.int64).reshape([-1] + [1] * (cache.dim() - 1))
    if node.text("mode", "linear") == "circular":
        places = torch.remainder(places, cache.shape[axis])
    return cache.scatter(axis, places.expand(update.shape), update)


@operator("TopK", host=(1,))
def top_k(node: NodeContext, x: Tensor, k: Any = None) -> tuple[Tensor, Tensor]:
    """Among equals the lower index comes first, hence a stable sort."""
    count = node.integer("k") if k is None else int(k[0] if isinstance(k, list) else k)
    axis = node.integer("axis", -1)
    values, places = torch.sort(x, dim=axis, descending=bool(node.integer("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def _extreme(node: NodeContext, x: Tensor, largest: bool) -> Tensor:
    axis, keep = node.integer("axis"), bool(node.integer("keepdims", 1))
    last = bool(node.integer("select_last_index"))
    values = torch.flip(x, [axis]) if last else x
    place = torch.argmax(values, axis, keep) if largest else torch.argmin(values, axis, keep)
    return x.shape[axis] - 1 - place if last else place


@operator("ArgMax")
def arg_max(node: NodeContext, x: Tensor) -> Tensor:
    """The index of the largest element along `axis`, the first or the last of equals."""
    return _extreme(node, x, True)


@operator("ArgMin")
def arg_min(node: NodeContext, x: Tensor) -> Tensor:
    """The index of the smallest element along `axis`, the first or the last of equals."""
    return _extreme(node, x, False)


@operator("NonZero")
def non_zero(node: NodeContext, x: Tensor) -> Tensor:
    """Indices of the non-zero elements, [rank, count]."""
    return torch.nonzero(x).t()


@operator("Compress", codes=True)
def compress(node: NodeContext, x: Tensor, condition: Tensor) -> Tensor:
    """The slices along `axis`, or elements of flattened x, where the condition holds."""
    axis = node.attributes.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(int(axis), torch.nonzero(condition).reshape(-1))


@operator("Unique")
def unique(node: NodeContext, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values (sorted or as they appear), the first place of each, the value of each element, the counts."""
    axis = node.attributes.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = int(axis)
    _, inverse, counts = torch.unique(x, dim=axis, return_inverse=True, return_counts=True)
    places = torch.arange(inverse.shape[0], device=x.device)
    far = torch.full(counts.shape, inverse.shape[0], dtype=torch.int64, device=x.device)
    first = far.scatter_reduce(0, inverse, places, "amin")
    values = x.index_select(axis, first)  # torch.unique has no derivative
    if not node.integer("sorted", 1):
        order = torch.argsort(first)
        rank = torch.argsort(order)
        values, first, counts, inverse = (
            values.index_select(axis, order),
            first[order],
            counts[order],
            rank[inverse],
        )
    return values, first, inverse, counts
