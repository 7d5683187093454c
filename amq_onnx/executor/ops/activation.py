"""Activation functions. Those whose torch kernel has no second derivative are written out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.elementwise import clamped
from amq_onnx.executor.registry import operator


@operator("Relu", codes=True)
def relu(node: NodeContext, x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@operator("LeakyRelu")
def leaky_relu(node: NodeContext, x: Tensor) -> Tensor:
    """x where positive, alpha x elsewhere."""
    return F.leaky_relu(x, node.number("alpha", 0.01))


@operator("PRelu")
def prelu(node: NodeContext, x: Tensor, slope: Tensor) -> Tensor:
    """x where positive, slope x elsewhere; the slope broadcasts."""
    return torch.where(x < 0, x * slope, x)


@operator("Elu")
def elu(node: NodeContext, x: Tensor) -> Tensor:
    """x where positive, alpha (e^x - 1) elsewhere."""
    return F.elu(x, node.number("alpha", 1.0))


@operator("Selu")
def selu(node: NodeContext, x: Tensor) -> Tensor:
    """gamma times Elu."""
    alpha, gamma = (
        node.number("alpha", 1.67326319217681884765625),
        node.number("gamma", 1.05070102214813232421875),
    )
    return gamma * F.elu(x, alpha)


@operator("Celu")
def celu(node: NodeContext, x: Tensor) -> Tensor:
    """max(x, 0) + min(alpha (e^(x / alpha) - 1), 0)."""
    return F.celu(x, node.number("alpha", 1.0))


@operator("Sigmoid")
def sigmoid(node: NodeContext, x: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    return torch.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(node: NodeContext, x: Tensor) -> Tensor:
    """alpha x + beta, clipped to [0, 1]."""
    return clamped(x * node.number("alpha", 0.2) + node.number("beta", 0.5), 0.0, 1.0)


@operator("HardSwish")
def hard_swish(node: NodeContext, x: Tensor) -> Tensor:
    """x times HardSigmoid with alpha 1/6 and beta 1/2."""
    return x * clamped(x / 6 + 0.5, 0.0, 1.0)


@operator("Swish")
def swish(node: NodeContext, x: Tensor) -> Tensor:
    """x sigmoid(alpha x)."""
    return x * torch.sigmoid(x * node.number("alpha", 1.0))


@operator("Mish")
def mish(node: NodeContext, x: Tensor) -> Tensor:
    """x tanh(softplus(x))."""
    return x * torch.tanh(F.softplus(x))


@operator("Gelu", domains=("", "com.microsoft"))
def gelu(node: NodeContext, x: Tensor) -> Tensor:
    """x times the normal distribution function, exact or by tanh."""
    return F.gelu(x, approximate=node.text("approximate", "none"))


@operator("Softplus")
def softplus(node: NodeContext, x: Tensor) -> Tensor:
    """log(1 + e^x)."""
    return F.softplus(x)


@operator("Softsign")
def softsign(node: NodeContext, x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + torch.abs(x))


@operator("ThresholdedRelu")
def thresholded_relu(node: NodeContext, x: Tensor) -> Tensor:
    """x where above alpha, 0 elsewhere."""
    return torch.where(x > node.number("alpha", 1.0), x, torch.zeros_like(x))


@operator("Shrink")
def shrink(node: NodeContext, x: Tensor) -> Tensor:
    """x moved toward 0 by bias where beyond lambd, 0 elsewhere."""
    bias, threshold = node.number("bias", 0.0), node.number("lambd", 0.5)
    outside = torch.where(x > threshold, x - bias, torch.zeros_like(x))
    return torch.where(x < -threshold, x + bias, outside).to(x.dtype)


def _flattened(node: NodeContext, x: Tensor) -> tuple[Tensor, int]:
    """Before opset 13, softmax runs over all axes from `axis` on, 1 by default."""
    if node.opset >= 13:
        return x, node.integer("axis", -1)
    axis = node.integer("axis", 1) % max(x.dim(), 1)
    if axis == x.dim() - 1:
        return x, axis
    return torch.flatten(x, axis), axis


@operator("Softmax")
def softmax(node: NodeContext, x: Tensor) -> Tensor:
    """Over one axis (opset 13), or over all axes from one on."""
    flat, axis = _flattened(node, x)
    return torch.softmax(flat, axis).reshape(x.shape)


@operator("LogSoftmax")
def log_softmax(node: NodeContext, x: Tensor) -> Tensor:
    """The logarithm of Softmax."""
    flat, axis = _flattened(node, x)
    return torch.log_softmax(flat, axis).reshape(x.shape)


@operator("Hardmax")
def hardmax(node: NodeContext, x: Tensor) -> Tensor:
    """1 at the first largest element, 0 elsewhere."""
    flat, axis = _flattened(node, x)
    largest = torch.argmax(flat, dim=axis, keepdim=True)
    return torch.zeros_like(flat).scatter(axis, largest, 1.0).reshape(x.shape)


@operator("Dropout")
def dropout(node: NodeContext, x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> object:
    """As in inference, whatever `training_mode` says: the executor has no randomness."""
    return x, torch.ones_like(x, dtype=torch.bool if node.opset >= 10 else x.dtype)
