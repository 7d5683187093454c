"""The values of narrow float types, and rounding to them.

The executor holds every float tensor in its own dtype. What is cast to a type narrower than float32 takes one of
that type's values; derivatives pass as if nothing were rounded (Bengio et al., 2013, arXiv 1308.3432).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from onnx import TensorProto
from torch import Tensor

_TORCH: dict[int, torch.dtype] = {
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn,
    TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2,
    TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
}
_EIGHT_BITS = frozenset(_TORCH) - {TensorProto.FLOAT16, TensorProto.BFLOAT16}
NARROW = frozenset(_TORCH) | {TensorProto.FLOAT8E8M0, TensorProto.FLOAT4E2M1}


class _StraightThrough(torch.autograd.Function):
    """Any rounding of x, with the derivative of the identity."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
        return rounding(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0], None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return tangents[0].clone()


def straight_through(x: Tensor, rounding: Callable[[Tensor], Tensor]) -> Tensor:
    """rounding(x); every derivative passes as if nothing were rounded."""
    result: Tensor = _StraightThrough.apply(x, rounding)  # type: ignore[no-untyped-call]
    return result


def _four_bits(x: Tensor) -> Tensor:
    """x in [-6, 6] to 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, halves to the even code."""
    size = torch.abs(x)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0)).to(x.dtype)
    return torch.round(x / step) * step


def _power_of_two(x: Tensor, mode: str) -> Tensor:
    """To the power of two above (round_mode up), below (down) or nearest to |x| (OCP MX, E8M0)."""
    size = torch.clamp(torch.abs(x), 2.0**-127, 2.0**127)
    mantissa, exponent = torch.frexp(size)  # size = mantissa 2^exponent, 0.5 <= mantissa < 1
    if mode != "down":
        exponent = exponent + (mantissa > 0.5 if mode == "up" else mantissa >= 0.75)
    return torch.where(torch.isnan(x), x, torch.ldexp(torch.ones_like(x), exponent - 1))


def _overflowing(x: Tensor, rounded: Tensor, dtype: torch.dtype) -> Tensor:
    """`rounded`, but NaN, or infinity in the one type that has it, where x rounds to more than the largest value.

    Written out because what torch does there depends on its version.
    """
    largest = torch.finfo(dtype).max
    mantissa = 2 if dtype in (torch.float8_e5m2, torch.float8_e5m2fnuz) else 3
    step = 2.0 ** (math.floor(math.log2(largest)) - mantissa)  # between the largest values
    beyond = torch.round(torch.abs(x) / step) * step > largest
    infinite = torch.full_like(x, torch.inf if dtype == torch.float8_e5m2 else torch.nan)
    return torch.where(beyond, torch.copysign(infinite, x), rounded)


def narrowed(x: Tensor, kind: int, *, saturate: bool = True, mode: str = "up") -> Tensor:
    """x with the values of ONNX float type `kind` in x's own dtype (Cast and QuantizeLinear).

    saturate: whether 8-bit floats take their largest value for what is beyond it, or infinity or NaN.
    mode: the rounding to FLOAT8E8M0: up, down or nearest.

    float32 and float64 leave x as it is. What is beyond the largest value has derivative 0 where it saturates.
    """
    if kind == TensorProto.FLOAT4E2M1:
        return straight_through(torch.clamp(x, -6.0, 6.0), _four_bits)
    if kind == TensorProto.FLOAT8E8M0:
        return straight_through(x, lambda value: _power_of_two(value, mode))
    if kind not in _TORCH:
        return x
    dtype = _TORCH[kind]
    if kind not in _EIGHT_BITS:
        return straight_through(x, lambda value: value.to(dtype).to(value.dtype))
    largest = torch.finfo(dtype).max
    if saturate:
        x = torch.clamp(x, -largest, largest)

    def rounding(value: Tensor) -> Tensor:
        rounded = torch.clamp(value, -largest, largest).to(dtype).to(value.dtype)
        return rounded if saturate else _overflowing(value, rounded, dtype)

    return straight_through(x, rounding)
