"""standard: the integer types of ONNX itself between QuantizeLinear and DequantizeLinear, and nothing else.

Weights. A width takes the next type: INT2 for 1 and 2 bits (opset 25), INT4 for 3 and 4 (opset 21), INT8 up to 8,
INT16 up to 16 (opset 21). Any consumer of the standard can read them. onnxruntime runs INT8 on its integer kernels;
the others it dequantizes at every run and computes in float.

Activations. uint8, narrowed by a Clip below 8 bits; uint16 at 16 bits.

All channels of a weight have one width: they share one type, whose bytes a narrower channel would not save.

Three forms that the standard allows are avoided, because onnxruntime breaks on them (1.31 and 1.32, measured): INT2
weights beside quantized activations, of which its optimiser makes a QLinearConv, QGemm or QLinearMatMul of int2 that
doesn't exist, so those take INT4; uint4 activations, for the same reason, and because it deletes a Relu in front of
them whatever their zero point; per-channel INT8 weights without zero points, which don't load with
session.x64quantprecision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np

from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.recipe import ConstantSpec, Recipe
from amq_onnx.targets.target import Target

_OPSETS = {"int2": 25, "int4": 21, "int16": 21}


class StandardTarget(Target):
    """The `standard` target."""

    name = "standard"
    weight_widths = range(1, 17)
    activation_widths = (*range(2, 9), 16)
    for_onnxruntime = False
    # Measured on a ResNet50-like and a transformer-like graph, onnxruntime 1.32, one thread, one x86-64 machine.
    speed = (
        "weights of 5 to 8 bits beside quantized activations run on onnxruntime's integer kernels, in .19 to .35 of "
        "the float time",
        "weights of 1 to 4 bits there are dequantized at every run: 1.6 times the float time for convolutions, 2.1 for "
        "transformers",
        "beside float activations: 1.3 to 1.6 times the float time for convolutions; .6 to .75 for MatMul, whose "
        "activations onnxruntime then rounds to 8 bits by itself unless session.qdq_matmulnbits_accuracy_level is 1",
        "the target onnxruntime has none of these costs",
    )

    def weight(self, key: str, shape: tuple[int, ...], bits: int, integer: bool = True) -> Recipe:
        """See Target."""
        dtype = container(bits, integer)
        stored = ConstantSpec(f"{self.stem}{key}", dtype, shape, lambda codes: codes.astype(dtype))
        return Recipe(stored.name, (stored,), zero_points="kept" if dtype == np.int8 else "left out")

    def opset(self, recipes: Iterable[Recipe], activations: Iterable[Encoding]) -> int:
        """See Target."""
        types = {np.dtype(constant.dtype).name for recipe in recipes for constant in recipe.constants}
        wide = 21 if any(encoding.bits > 8 for encoding in activations) else self.minimum_opset
        return max([wide, *(_OPSETS.get(name, self.minimum_opset) for name in types)])


def container(bits: int, integer: bool) -> np.dtype[Any]:
    """The type that holds weights of `bits` bits; `integer`: beside quantized activations."""
    if bits > 4:
        return np.dtype(np.int8 if bits <= 8 else np.int16)
    narrow: np.dtype[Any] = np.dtype(ml_dtypes.int4 if bits > 2 or integer else ml_dtypes.int2)
    return narrow
