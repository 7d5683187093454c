"""Operators that act on each element: arithmetic, comparison, logic, bits, functions of one variable."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from amq_onnx.executor.narrow import NARROW, narrowed
from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator
from amq_onnx.executor.types import RANGES

Number = int | float


def _pointwise(name: str, function: Callable[..., Any]) -> None:
    """Register an ONNX operator that torch has under another name, with the same inputs and no attributes."""

    def call(node: NodeContext, *inputs: Tensor) -> Any:
        return function(*inputs)

    operator(name)(call)


_SAME: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Add": torch.add,
    "And": torch.logical_and,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseNot": torch.bitwise_not,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,  # both round half to even
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Xor": torch.logical_xor,
}
for _name, _function in _SAME.items():
    _pointwise(_name, _function)


@operator("Identity", codes=True)
def identity(node: NodeContext, x: Tensor) -> Tensor:
    """The same tensor."""
    return x


@operator("Div")
def div(node: NodeContext, a: Tensor, b: Tensor) -> Tensor:
    """Integers are truncated toward zero."""
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


@operator("Pow", literal=(1,))
def power(node: NodeContext, base: Tensor, exponent: Tensor | Number) -> Tensor:
    """base to the exponent, in the type of the base."""
    return torch.pow(base, exponent).to(base.dtype)


@operator("Mod")
def mod(node: NodeContext, a: Tensor, b: Tensor) -> Tensor:
    """fmod=0: the sign of the divisor (integers); fmod=1: the sign of the dividend."""
    return torch.fmod(a, b) if node.integer("fmod") else torch.remainder(a, b)


@operator("BitShift")
def bit_shift(node: NodeContext, a: Tensor, b: Tensor) -> Tensor:
    """Integers shifted by b bits; what leaves the type is lost."""
    if node.text("direction") == "RIGHT":
        return torch.bitwise_right_shift(a, b)
    shifted = torch.bitwise_left_shift(a, b)
    _, high = RANGES.get(node.input_types[0], (0, 0))
    return torch.bitwise_and(shifted, high) if 0 < high < 2**32 else shifted  # uint16 is held in 32 bits


@operator("Max", codes=True)
def maximum(node: NodeContext, *inputs: Tensor) -> Tensor:
    """The largest of the inputs, which broadcast."""
    return reduce(torch.maximum, inputs)


@operator("Min", codes=True)
def minimum(node: NodeContext, *inputs: Tensor) -> Tensor:
    """The smallest of the inputs, which broadcast."""
    return reduce(torch.minimum, inputs)


@operator("Sum")
def add_all(node: NodeContext, *inputs: Tensor) -> Tensor:
    """The sum of the inputs, which broadcast."""
    return reduce(torch.add, inputs)


@operator("Mean")
def mean_of_inputs(node: NodeContext, *inputs: Tensor) -> Tensor:
    """The mean of the inputs, which broadcast."""
    return reduce(torch.add, inputs) / len(inputs)


@operator("IsInf")
def is_inf(node: NodeContext, x: Tensor) -> Tensor:
    """Where x is infinite, of the signs asked for."""
    positive, negative = node.integer("detect_positive", 1), node.integer("detect_negative", 1)
    if positive and negative:
        return torch.isinf(x)
    if positive or negative:
        return torch.isposinf(x) if positive else torch.isneginf(x)
    return torch.zeros_like(x, dtype=torch.bool)


@operator("Clip", literal=(1, 2), codes=True)
def clip(
    node: NodeContext, x: Tensor, low: Tensor | Number | None = None, high: Tensor | Number | None = None
) -> Tensor:
    """The gradient is 1 from `low` to `high`, both included. Bounds are attributes before opset 11."""
    if node.opset < 11:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        bounds = [
            bound.to(x.dtype).reshape(())
            if isinstance(bound, Tensor)
            else None
            if bound is None
            else torch.tensor(bound, dtype=x.dtype, device=x.device)
            for bound in (low, high)
        ]
        return torch.clamp(x, bounds[0], bounds[1])
    return clamped(x, low, high)


def clamped(x: Tensor, low: Number | None, high: Number | None) -> Tensor:
    """torch.clamp, with derivatives in fewer passes where x has any."""
    if not x.requires_grad:
        return torch.clamp(x, low, high)
    ends = (-math.inf if low is None else low, math.inf if high is None else high)
    result: Tensor = _Clamped.apply(x, *ends)  # type: ignore[no-untyped-call]
    return result


class _Clamped(torch.autograd.Function):
    """clamp(x, low, high), whose derivatives take a sixth of the time of torch's own: bounds of activations are a large
    part of what a quantized graph computes besides its layers."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: Number, high: Number) -> Tensor:
        return torch.clamp(x, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, low, high = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        # hardtanh leaves its bounds out; the next numbers beyond them put the bounds in.
        ends = torch.tensor([low, high], dtype=x.dtype)
        ctx.bounds = torch.nextafter(ends, torch.tensor([-math.inf, math.inf], dtype=x.dtype)).tolist()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(gradients[0], x, *ctx.bounds), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.hardtanh_backward(tangents[0], x, *ctx.bounds)


@operator("Where", codes=True)
def where(node: NodeContext, condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, b elsewhere."""
    return torch.where(condition, a, b)


@operator("Cast")
def cast(node: NodeContext, x: Tensor) -> Tensor:
    """To a float type: its values, in the executor's dtype. To integers: truncated toward zero."""
    return _cast(node, x, node.integer("to"))


@operator("CastLike")
def cast_like(node: NodeContext, x: Tensor, like: Tensor) -> Tensor:
    """Cast to the element type of `like`."""
    kind = node.input_types[1] if len(node.input_types) > 1 else 0
    return _cast(node, x, kind) if kind else x.to(like.dtype)


def _cast(node: NodeContext, x: Tensor, kind: int) -> Tensor:
    held = node.held(kind)
    result = x.to(held)
    if kind in NARROW:
        saturate = bool(node.integer("saturate", 1))
        return narrowed(result, kind, saturate=saturate, mode=node.text("round_mode", "up"))
    low, high = RANGES.get(kind, (0, 0))
    if high and high < torch.iinfo(held).max:  # a type that torch lacks, held in a wider one
        result = torch.remainder(result.to(torch.int64) - low, high - low + 1) + low
    return result.to(held)
