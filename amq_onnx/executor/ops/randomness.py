"""Random tensors. Each node draws from a generator of its own, so every run gives the same numbers.

The generator starts from the node's seed, or from its name where it has none. The numbers are torch's: ONNX
leaves the algorithm open.
"""

from __future__ import annotations

import struct
import zlib

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


def _generator(node: NodeContext) -> torch.Generator:
    """On the CPU, so that a seed gives the same numbers on every device."""
    seed = node.attributes.get("seed")
    start = node.label.encode() if seed is None else struct.pack("<f", seed)
    return torch.Generator().manual_seed(zlib.crc32(start))


def _dtype(node: NodeContext, default: torch.dtype) -> torch.dtype:
    kind = node.integer("dtype")
    return node.held(kind) if kind else default


def _uniform(node: NodeContext, sizes: list[int], dtype: torch.dtype) -> Tensor:
    low, high = node.number("low", 0.0), node.number("high", 1.0)
    values = torch.rand(sizes, generator=_generator(node), dtype=dtype)
    return (values * (high - low) + low).to(node.device)


def _normal(node: NodeContext, sizes: list[int], dtype: torch.dtype) -> Tensor:
    values = torch.randn(sizes, generator=_generator(node), dtype=dtype)
    return (values * node.number("scale", 1.0) + node.number("mean", 0.0)).to(node.device)


@operator("RandomUniform")
def random_uniform(node: NodeContext) -> Tensor:
    """Numbers from `low` to `high`, of the shape in an attribute."""
    return _uniform(node, node.integers("shape") or [], _dtype(node, node.dtype))


@operator("RandomUniformLike")
def random_uniform_like(node: NodeContext, x: Tensor) -> Tensor:
    """Numbers from `low` to `high`, of x's shape."""
    return _uniform(node, list(x.shape), _dtype(node, x.dtype))


@operator("RandomNormal")
def random_normal(node: NodeContext) -> Tensor:
    """Normally distributed numbers, of the shape in an attribute."""
    return _normal(node, node.integers("shape") or [], _dtype(node, node.dtype))


@operator("RandomNormalLike")
def random_normal_like(node: NodeContext, x: Tensor) -> Tensor:
    """Normally distributed numbers, of x's shape."""
    return _normal(node, list(x.shape), _dtype(node, x.dtype))


@operator("Bernoulli")
def bernoulli(node: NodeContext, x: Tensor) -> Tensor:
    """1 with probability x, 0 otherwise."""
    drawn = torch.rand(x.shape, generator=_generator(node), dtype=x.dtype).to(x.device)
    return (drawn < x).to(_dtype(node, x.dtype))


@operator("Multinomial")
def multinomial(node: NodeContext, x: Tensor) -> Tensor:
    """Unnormalized log probabilities x [N, classes] -> drawn classes [N, sample_size]."""
    drawn = torch.multinomial(
        torch.softmax(x.detach(), 1).cpu(), node.integer("sample_size", 1), True, generator=_generator(node)
    )
    return drawn.to(device=node.device, dtype=node.held(node.integer("dtype", 6)))
