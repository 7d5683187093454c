"""Takes a factor and a shift in front of a quantizer into its scale and zero point."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.affine import affine
from amq_onnx.passes.base import Pass

# By which part of a step a shift may differ from a whole number of steps: scales are numbers of 32 bits.
_ROUNDING = 1e-3


class AbsorbAffine(Pass):
    """Quantizes what a factor and a shift, one number each, are applied to, with the same codes.

    Before:  x -> Mul(k) -> Add(c) -> y -> QuantizeLinear(s, z) -> codes -> DequantizeLinear(s, z)
    After:   x -> QuantizeLinear(s / k, z + c / s) -> codes -> DequantizeLinear(s, z)

    So for Div and Sub. y / s + z is x / (s / k) + z + c / s, the same codes where c / s is a whole number; ranges are
    chosen so that it is (range_of_shift). What makes x, a product or a sum of codes, then writes codes itself, where
    it would compute in float, as would the factor and the shift.

    Left alone: factors of 0 and less, shifts between two steps, zero points outside the codes, scales along an axis.

    tensors: names of those that may be quantized earlier.
    """

    def __init__(self, tensors: Collection[str]) -> None:
        self.tensors = tensors

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        for node in graph.nodes:
            if node.op == "QuantizeLinear" and node.inputs[0].name in self.tensors:
                inputs = absorbed(node)
                if inputs is not None:
                    node.inputs = inputs
                    changed = True
        return changed


def absorbed(quantize: gs.Node) -> list[gs.Tensor] | None:
    """The inputs of a QuantizeLinear in front of the factor and the shift; None where there are none, or no such."""
    if quantize.op != "QuantizeLinear" or len(quantize.inputs) < 3:
        return None
    tensor, scale, zero_point = quantize.inputs
    if not (isinstance(scale, gs.Constant) and isinstance(zero_point, gs.Constant)) or np.ndim(scale.values):
        return None
    found = affine(tensor)
    if not found.nodes:
        return None
    step, kind = float(scale.values), np.iinfo(zero_point.dtype)
    steps = round(found.shift / step)
    moved = int(zero_point.values) + steps
    if abs(found.shift / step - steps) > _ROUNDING or not kind.min <= moved <= kind.max:
        return None
    name = quantize.outputs[0].name
    scaled = gs.Constant(f"{name}m", np.asarray(step / found.factor, np.float32))
    return [found.source, scaled, gs.Constant(f"{name}n", np.array(moved, zero_point.dtype))]
