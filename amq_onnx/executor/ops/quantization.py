"""QuantizeLinear and DequantizeLinear, differentiable by the straight-through estimator.

QuantizeLinear computes clamp(rint(x / scale) + zero_point) by division, bit for bit what onnxruntime
computes in float32, and yields the integer codes as a float tensor. The derivative of rint is taken as 1
(Bengio et al., 2013, arXiv 1308.3432), so that DequantizeLinear(QuantizeLinear(x)) has derivative 1 to x
inside the range and 0 outside, and to the scale rint(x / scale) - x / scale inside and the clipped code
less the zero point outside, as in LSQ (Esser et al., 2020, arXiv 1902.08153).
"""

from __future__ import annotations

from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

from amq_onnx.executor.narrow import NARROW, narrowed, straight_through
from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.elementwise import clamped
from amq_onnx.executor.ops.linear import conv
from amq_onnx.executor.registry import operator
from amq_onnx.executor.types import RANGES
from amq_onnx.layout import inner


def _spread(node: NodeContext, parameter: Tensor, x: Tensor) -> Tensor:
    """A scale or zero point shaped to broadcast against x: per tensor, per axis or blocked along it."""
    if parameter.numel() == 1 and parameter.dim() <= 1:
        return parameter.reshape(())
    axis = node.integer("axis", 1) % max(x.dim(), 1)
    block = node.integer("block_size")
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.dim() == 1:
        sizes = [1] * x.dim()
        sizes[axis] = -1
        return parameter.reshape(sizes)
    return parameter


class _Codes(torch.autograd.Function):
    """clamp(rint(x / scale) + zero_point, low, high) with one scale, in one buffer, and its derivatives in few passes:
    activations are most of what a simulated graph computes besides its layers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
        return (x / scale).round_().add_(zero_point).clamp_(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, zero_point, low, high = inputs
        ctx.save_for_backward(x, scale)
        ctx.save_for_forward(x, scale)
        # rint stays in the range up to half a code beyond it.
        ctx.bounds = (low - zero_point - 0.5, high - zero_point + 0.5)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale = ctx.saved_tensors
        inside = torch.ops.aten.hardtanh_backward(gradients[0], x / scale, *ctx.bounds) / scale
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = -inner(inside, x) / scale
        return inside, of_scale, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x, scale = ctx.saved_tensors
        change = torch.zeros_like(x) if tangents[0] is None else tangents[0]
        if tangents[1] is not None:
            change = change - x / scale * tangents[1]
        return torch.ops.aten.hardtanh_backward(change / scale, x / scale, *ctx.bounds)


@operator("QuantizeLinear", domains=("", "com.microsoft"), literal=(2,), reads_codes=True)
def quantize_linear(node: NodeContext, x: Tensor, scale: Tensor, zero_point: Tensor | int | None = None) -> Tensor:
    """The codes of x as a float tensor of x's shape, in the range of the output's element type.

    8- and 4-bit float types have no zero point: their codes are x / scale, rounded to their values.
    """
    x, kind, step = x.to(node.dtype), node.output_types[0], _spread(node, scale, x)
    if kind in NARROW:
        return narrowed(x / step, kind, saturate=bool(node.integer("saturate", 1)))
    if kind not in RANGES:
        raise node.unsupported(f"element type {TensorProto.DataType.Name(kind)}")
    if step.dim() or isinstance(zero_point, Tensor):
        codes = straight_through(x / step, torch.round)
        if zero_point is not None:
            codes = codes + (_spread(node, zero_point, x) if isinstance(zero_point, Tensor) else zero_point)
        return clamped(codes, *RANGES[kind])
    result: Tensor = _Codes.apply(x, step, zero_point or 0, *RANGES[kind])  # type: ignore[no-untyped-call]
    return result


@operator("DequantizeLinear", domains=("", "com.microsoft"), literal=(2,), reads_codes=True)
def dequantize_linear(node: NodeContext, x: Tensor, scale: Tensor, zero_point: Tensor | int | None = None) -> Tensor:
    """(x - zero_point) * scale; x holds integers, or codes as floats."""
    offset = _spread(node, zero_point, x) if isinstance(zero_point, Tensor) else zero_point
    if offset is not None and (isinstance(offset, Tensor) or offset):
        if not x.is_floating_point():
            x = x.to(torch.int32)
        x = x - offset.to(x.dtype) if isinstance(offset, Tensor) else x - offset
    return x.to(node.dtype) * _spread(node, scale, x)


class _RoundTrip(torch.autograd.Function):
    """clamp(rint(x / scale), low, high) * scale with one scale, in one buffer, and its derivatives: those of _Codes and
    of the product behind it, in half of their passes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        return (x / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, scale, low, high = inputs
        ctx.save_for_backward(x, scale, output)
        ctx.save_for_forward(x, scale, output)
        ctx.bounds = (low - 0.5, high + 0.5)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, y = ctx.saved_tensors
        gradient = gradients[0]
        inside = torch.ops.aten.hardtanh_backward(gradient, x / scale, *ctx.bounds)
        of_scale = None
        if ctx.needs_input_grad[1]:
            of_scale = (inner(gradient, y) - inner(inside, x)) / scale
        return inside, of_scale, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        x, scale, y = ctx.saved_tensors
        steps = x / scale
        change = torch.zeros_like(x) if tangents[0] is None else tangents[0]
        of_scale = 0.0 if tangents[1] is None else tangents[1]
        return torch.ops.aten.hardtanh_backward(change - steps * of_scale, steps, *ctx.bounds) + y / scale * of_scale


def round_trip(node: NodeContext, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """Codes of x, less the zero point, from `low` to `high`, and dequantized again."""
    x, step = x.to(node.dtype), _spread(node, scale, x)
    if step.dim():
        return clamped(straight_through(x / step, torch.round), low, high) * step
    result: Tensor = _RoundTrip.apply(x, step, low, high)  # type: ignore[no-untyped-call]
    return result


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(node: NodeContext, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """uint8 codes over the range of x widened to hold 0, and the scale and zero point that this takes."""
    low, high = torch.clamp(x.min(), max=0), torch.clamp(x.max(), min=0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.clamp(torch.round(-low / scale), 0, 255)
    codes = torch.clamp(straight_through(x / scale, torch.round) + zero_point, 0, 255)
    return codes, scale, zero_point.to(torch.uint8)


def _along(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """A scale or zero point against x: a scalar, or a vector along `axis`."""
    if parameter.dim() != 1:
        return parameter
    sizes = [1] * x.dim()
    sizes[axis] = -1
    return parameter.reshape(sizes)


def _integer(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """Codes less their zero point, in int32."""
    x = x.to(torch.int32)
    return x if zero_point is None else x - _along(zero_point.to(torch.int32), x, axis)


@operator("MatMulInteger")
def matmul_integer(
    node: NodeContext, a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    """int32 products of a and b less their zero points: scalars, per row of a, per column of b."""
    return torch.matmul(_integer(a, a_zero, -2), _integer(b, b_zero, -1))


@operator("ConvInteger")
def conv_integer(
    node: NodeContext, x: Tensor, weight: Tensor, x_zero: Tensor | None = None, w_zero: Tensor | None = None
) -> Tensor:
    """int32 convolution of x and weight less their zero points; in float64, which holds every sum exactly."""
    return conv(node, _integer(x, x_zero, 1).double(), _integer(weight, w_zero, 0).double()).to(torch.int32)


def _requantized(node: NodeContext, y: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Integers of the zero point's type. No gradient passes: these operators compute with integers."""
    kind = node.input_types[7]
    return torch.clamp(torch.round(y / scale) + zero_point, *RANGES[kind]).to(node.held(kind))


@operator("QLinearMatMul")
def qlinear_matmul(
    node: NodeContext,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
) -> Tensor:
    """The product of dequantized a and b, quantized again; parameters per row of a, per column of b."""
    left = _integer(a, a_zero, -2) * _along(a_scale, a, -2)
    right = _integer(b, b_zero, -1) * _along(b_scale, b, -1)
    return _requantized(node, torch.matmul(left, right), y_scale, y_zero)


@operator("QLinearConv")
def qlinear_conv(
    node: NodeContext,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    """The convolution of dequantized x and weight, quantized again; the bias has scale x_scale * w_scale."""
    inputs = _integer(x, x_zero, 1) * x_scale
    kernel = _integer(weight, w_zero, 0) * _along(w_scale, weight, 0)
    return _requantized(
        node,
        conv(node, inputs, kernel, None if bias is None else bias * (x_scale * w_scale)),
        y_scale,
        y_zero,
    )
