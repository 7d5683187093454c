"""Reductions over axes, and running sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


def _axes(node: NodeContext, x: Tensor, axes: list[int] | None) -> tuple[int, ...] | None:
    """The axes to reduce, an attribute in early opsets; None where nothing is to be reduced."""
    axes = node.integers("axes") if axes is None else axes
    if not axes:
        return None if node.integer("noop_with_empty_axes") else tuple(range(x.dim()))
    return tuple(axes)


def _keep(node: NodeContext) -> bool:
    return bool(node.integer("keepdims", 1))


@operator("ReduceSum", host=(1,))
def reduce_sum(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The sum."""
    dims = _axes(node, x, axes)
    return x if dims is None else torch.sum(x, dims, _keep(node), dtype=x.dtype)


@operator("ReduceMean", host=(1,))
def reduce_mean(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The mean."""
    dims = _axes(node, x, axes)
    if dims is None:
        return x
    return torch.mean(x, dims, _keep(node)) if x.is_floating_point() else _integer_mean(x, dims, _keep(node))


def _integer_mean(x: Tensor, dims: tuple[int, ...], keep: bool) -> Tensor:
    return torch.mean(x.to(torch.float64), dims, keep).to(x.dtype)


def _reduce_extreme(node: NodeContext, x: Tensor, axes: list[int] | None, largest: bool) -> Tensor:
    dims = _axes(node, x, axes)
    if dims is None:
        return x
    if any(x.shape[axis] == 0 for axis in dims):  # torch refuses to reduce nothing; ONNX has an answer
        count = torch.sum(torch.zeros_like(x), dims, _keep(node), dtype=x.dtype)
        return torch.full_like(count, _worst(x.dtype, largest))
    if x.dtype == torch.bool:
        values = x.to(torch.uint8)
        return (torch.amax if largest else torch.amin)(values, dims, _keep(node)).to(torch.bool)
    return (torch.amax if largest else torch.amin)(x, dims, _keep(node))


def _worst(dtype: torch.dtype, largest: bool) -> float | int:
    if dtype.is_floating_point:
        return float("-inf") if largest else float("inf")
    if dtype == torch.bool:
        return 0 if largest else 1
    return torch.iinfo(dtype).min if largest else torch.iinfo(dtype).max


@operator("ReduceMax", host=(1,), codes=True)
def reduce_max(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The maximum; gradients are shared among equals."""
    return _reduce_extreme(node, x, axes, True)


@operator("ReduceMin", host=(1,), codes=True)
def reduce_min(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The minimum; gradients are shared among equals."""
    return _reduce_extreme(node, x, axes, False)


@operator("ReduceProd", host=(1,))
def reduce_prod(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The product."""
    dims = _axes(node, x, axes)
    for axis in sorted((axis % x.dim() for axis in dims or ()), reverse=True):
        x = torch.prod(x, axis, _keep(node), dtype=x.dtype)
    return x


@operator("ReduceSumSquare", host=(1,))
def reduce_sum_square(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The sum of squares."""
    dims = _axes(node, x, axes)
    return x * x if dims is None else torch.sum(x * x, dims, _keep(node), dtype=x.dtype)


@operator("ReduceL1", host=(1,))
def reduce_l1(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The sum of absolute values."""
    dims = _axes(node, x, axes)
    return x.abs() if dims is None else torch.sum(x.abs(), dims, _keep(node), dtype=x.dtype)


@operator("ReduceL2", host=(1,))
def reduce_l2(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The root of the sum of squares."""
    dims = _axes(node, x, axes)
    if dims is None:
        return x.abs()
    if not x.is_floating_point():
        return torch.sqrt(torch.sum(x.to(torch.float64) ** 2, dims, _keep(node))).to(x.dtype)
    norm: Tensor = torch.linalg.vector_norm(x, 2, dims, _keep(node))
    return norm


@operator("ReduceLogSum", host=(1,))
def reduce_log_sum(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The logarithm of the sum."""
    dims = _axes(node, x, axes)
    return torch.log(x) if dims is None else torch.log(torch.sum(x, dims, _keep(node)))


@operator("ReduceLogSumExp", host=(1,))
def reduce_log_sum_exp(node: NodeContext, x: Tensor, axes: list[int] | None = None) -> Tensor:
    """The logarithm of the sum of exponentials."""
    dims = _axes(node, x, axes)
    return x if dims is None else torch.logsumexp(x, dims, _keep(node))


@operator("CumSum", host=(1,))
def cumulative_sum(node: NodeContext, x: Tensor, axis: Any) -> Tensor:
    """Running sums along one axis, exclusive or reversed where asked for."""
    return _cumulative(node, x, axis, torch.cumsum, 0)


@operator("CumProd", host=(1,))
def cumulative_product(node: NodeContext, x: Tensor, axis: Any) -> Tensor:
    """Running products along one axis, exclusive or reversed where asked for."""
    return _cumulative(node, x, axis, torch.cumprod, 1)


def _cumulative(node: NodeContext, x: Tensor, axis: Any, function: Any, neutral: int) -> Tensor:
    place = int(axis[0] if isinstance(axis, list) else axis)
    if node.integer("reverse"):
        x = torch.flip(x, [place])
    if node.integer("exclusive"):
        first = torch.full_like(x.narrow(place, 0, 1), neutral)
        x = torch.cat([first, x.narrow(place, 0, x.shape[place] - 1)], place)
    total: Tensor = function(x, place, dtype=x.dtype)
    return torch.flip(total, [place]) if node.integer("reverse") else total
