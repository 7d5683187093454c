"""Normalizations by statistics: of a batch, a group, a layer, neighbouring channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


@operator("BatchNormalization")
def batch_normalization(
    node: NodeContext, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """x [N, C, *]; statistics [C] of the file, or of the batch where training_mode is set (opset 14).

    Statistics [C, *], one for each element, are what spatial = 0 means before opset 9.
    """
    epsilon = node.number("epsilon", 1e-5)

    def normalized(mean: Tensor, variance: Tensor) -> Tensor:
        if mean.requires_grad or variance.requires_grad or mean.dim() > 1:  # torch's kernel has constants [C] only
            sizes = [-1] + [1] * (x.dim() - 2) if mean.dim() == 1 else list(mean.shape)
            factor = scale * torch.rsqrt(variance + epsilon)
            return x * factor.reshape(sizes) + (bias - mean * factor).reshape(sizes)
        return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)

    if not node.integer("training_mode"):
        return normalized(mean, variance)
    momentum = node.number("momentum", 0.9)
    axes = [0, *range(2, x.dim())]
    batch_mean, batch_variance = x.mean(axes), x.var(axes, unbiased=False)
    return (
        normalized(batch_mean, batch_variance),
        mean * momentum + batch_mean * (1 - momentum),
        variance * momentum + batch_variance * (1 - momentum),
    )


@operator("InstanceNormalization")
def instance_normalization(node: NodeContext, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x [N, C, *], scale and bias [C]."""
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.number("epsilon", 1e-5))


@operator("GroupNormalization")
def group_normalization(node: NodeContext, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """x [N, C, *]; scale and bias [C], or [groups] before opset 21."""
    groups = node.integer("num_groups")
    if scale.numel() == groups and groups != x.shape[1]:
        scale, bias = (value.repeat_interleave(x.shape[1] // groups) for value in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.number("epsilon", 1e-5))


@operator("LayerNormalization")
def layer_normalization(
    node: NodeContext, x: Tensor, scale: Tensor, bias: Tensor | None = None
) -> Tensor | tuple[Tensor, ...]:
    """Over the axes from `axis` on; also the mean and inverse deviation where the node has those outputs."""
    axis, epsilon = node.integer("axis", -1) % x.dim(), node.number("epsilon", 1e-5)
    shape = x.shape[axis:]
    if scale.shape == shape and (bias is None or bias.shape == shape):
        y = F.layer_norm(x, shape, scale, bias, epsilon)
    else:
        y = F.layer_norm(x, shape, None, None, epsilon) * scale
        y = y if bias is None else y + bias
    if len(node.outputs) == 1:
        return y
    axes = tuple(range(axis, x.dim()))
    deviation = torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + epsilon)
    return y, x.mean(axes, keepdim=True), deviation


@operator("RMSNormalization", "SimplifiedLayerNormalization")
def rms_normalization(node: NodeContext, x: Tensor, scale: Tensor) -> Tensor:
    """Over the axes from `axis` on."""
    axes = tuple(range(node.integer("axis", -1) % x.dim(), x.dim()))
    return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + node.number("epsilon", 1e-5)) * scale


@operator("LRN")
def local_response_normalization(node: NodeContext, x: Tensor) -> Tensor:
    """x [N, C, *], normalized by the squares of `size` neighbouring channels."""
    size = node.integer("size")
    before = (size - 1) // 2
    squares = F.pad(x * x, [0, 0] * (x.dim() - 2) + [before, size - 1 - before])
    channels = x.shape[1]
    total = sum((squares.narrow(1, i, channels) for i in range(1, size)), squares.narrow(1, 0, channels))
    base = node.number("bias", 1.0) + node.number("alpha", 1e-4) / size * total
    return x * torch.pow(base, -node.number("beta", 0.75))


@operator("LpNormalization")
def lp_normalization(node: NodeContext, x: Tensor) -> Tensor:
    """x divided by its p-norm along one axis, 0 where that is 0."""
    p, axis = node.integer("p", 2), node.integer("axis", -1)
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: NodeContext, x: Tensor) -> Tensor:
    """x less its mean, divided by its deviation, over `axes`."""
    axes = node.integers("axes") or [0, 2, 3]
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt((centred * centred).mean(axes, keepdim=True)) + 1e-9)
