"""Convolutions and matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.windows import resolved_pads, symmetric, torch_pads
from amq_onnx.executor.registry import operator
from amq_onnx.layout import channels_last

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@operator("Conv")
def conv(node: NodeContext, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, *spatial], weight [M, C/group, *kernel], bias [M] -> [N, M, *spatial]; 1 to 3 spatial axes."""
    rank = weight.dim() - 2
    if rank not in _CONV:
        raise node.unsupported(f"{rank} spatial axes")
    strides = node.integers("strides") or [1] * rank
    dilations = node.integers("dilations") or [1] * rank
    pads = resolved_pads(node, x.shape[2:], list(weight.shape[2:]), strides, dilations)
    if not symmetric(pads):
        x, pads = F.pad(x, torch_pads(pads)), [0] * (2 * rank)
    group = node.integer("group", 1)
    pointwise = weight.shape[2:].numel() == 1 and not any(pads) and max(strides) == 1
    if pointwise and group == x.shape[1] == weight.shape[0]:
        y = x * weight.reshape([-1] + [1] * rank)
        return y if bias is None else y + bias.reshape([-1] + [1] * rank)
    if rank == 2 and x.dtype == torch.float32 and x.device.type == "cpu":
        x = channels_last(x)
        if pointwise and group == 1:
            # With one thread torch copies pixels to channels and back for these.
            return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    return _CONV[rank](x, weight, bias, strides, pads[:rank], dilations, group)


@operator("ConvTranspose")
def conv_transpose(node: NodeContext, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, C, *spatial], weight [C, M/group, *kernel], bias [M] -> [N, M, *spatial]; 1 to 3 spatial axes."""
    rank = weight.dim() - 2
    if rank not in _CONV_TRANSPOSE:
        raise node.unsupported(f"{rank} spatial axes")
    strides = node.integers("strides") or [1] * rank
    dilations = node.integers("dilations") or [1] * rank
    extra = node.integers("output_padding") or [0] * rank
    full = [
        (size - 1) * stride + (kernel - 1) * dilation + 1
        for size, stride, kernel, dilation in zip(x.shape[2:], strides, weight.shape[2:], dilations, strict=True)
    ]
    pads = _transposed_pads(node, x.shape[2:], full, strides, extra)
    group = node.integer("group", 1)
    simple = symmetric(pads) and all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    if simple:
        return _CONV_TRANSPOSE[rank](x, weight, bias, strides, pads[:rank], extra, group, dilations)
    y = _CONV_TRANSPOSE[rank](x, weight, None, strides, 0, 0, group, dilations)
    cut = [-pad for pad in pads[:rank]] + [e - pad for e, pad in zip(extra, pads[rank:], strict=True)]
    y = F.pad(y, torch_pads(cut))
    return y if bias is None else y + bias.reshape([-1] + [1] * rank)


def _transposed_pads(
    node: NodeContext, sizes: Sequence[int], full: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> list[int]:
    """What ConvTranspose cuts from its full output, [begins, ends]; output_shape and auto_pad come first."""
    rank = len(full)
    auto = node.text("auto_pad", "NOTSET")
    wanted = node.integers("output_shape")
    if wanted is not None:
        wanted = wanted[-rank:]
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, strides, strict=True)]
    if wanted is None:
        return node.integers("pads") or [0] * (2 * rank)
    total = [f + e - w for f, e, w in zip(full, extra, wanted, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return small + large if auto == "SAME_UPPER" else large + small


@operator("Col2Im", host=(1, 2))
def col2im(node: NodeContext, x: Tensor, sizes: list[int], block: list[int]) -> Tensor:
    """Blocks x [N, C * prod(block), L] added up at their places -> [N, C, *sizes]; 1 to 3 spatial axes.

    A transposed convolution whose kernel moves each element of a block to its place.
    """
    rank, count = len(block), math.prod(block)
    if rank not in _CONV_TRANSPOSE:
        raise node.unsupported(f"{rank} spatial axes")
    strides, dilations = node.integers("strides") or [1] * rank, node.integers("dilations") or [1] * rank
    pads = node.integers("pads") or [0] * (2 * rank)
    axes = list(zip(sizes, pads[:rank], pads[rank:], block, strides, dilations, strict=True))
    steps = [
        (size + begin + end - (k - 1) * dilation - 1) // stride + 1 for size, begin, end, k, stride, dilation in axes
    ]
    channels = x.shape[1] // count
    kernel = (
        torch.eye(count, dtype=x.dtype, device=x.device).reshape(count, 1, *block).repeat([channels] + [1] * (rank + 1))
    )
    y = _CONV_TRANSPOSE[rank](x.reshape(*x.shape[:2], *steps), kernel, None, strides, 0, 0, channels, dilations)
    ends = [size + begin - n for (size, begin, *_), n in zip(axes, y.shape[2:], strict=True)]
    return F.pad(y, torch_pads([-begin for begin in pads[:rank]] + ends))


@operator("Gemm")
def gemm(node: NodeContext, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """alpha * a' b' + beta * c, with a [M, K] and b [K, N] after the transpositions asked for."""
    alpha, beta = node.number("alpha", 1.0), node.number("beta", 1.0)
    if node.integer("transA"):
        a = a.t()
    if not a.is_floating_point():  # integers: no linear kernel
        product = torch.matmul(a, b.t() if node.integer("transB") else b) * int(alpha)
        return product if c is None else product + int(beta) * c
    if alpha == 1 and (c is None or (beta == 1 and c.dim() == 1)):
        return F.linear(a, b if node.integer("transB") else b.t(), c)
    product = torch.matmul(a, b.t() if node.integer("transB") else b)
    if alpha != 1:
        product = product * alpha
    if c is None:
        return product
    return product + (c if beta == 1 else c * beta)


@operator("MatMul")
def matmul(node: NodeContext, a: Tensor, b: Tensor) -> Tensor:
    """numpy's matmul."""
    return torch.matmul(a, b)


@operator("Einsum")
def einsum(node: NodeContext, *operands: Tensor) -> Tensor:
    """The contraction that the equation attribute spells."""
    return torch.einsum(node.text("equation").replace(" ", ""), *operands)


@operator("Det")
def det(node: NodeContext, x: Tensor) -> Tensor:
    """Determinants of x [*, M, M]."""
    determinant: Tensor = torch.linalg.det(x)
    return determinant
