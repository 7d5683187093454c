"""Computes parametric ReLUs of quantized tensors on their codes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.kernels import is_between_codes
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.affine import quantize

_CODES = np.iinfo(np.uint8)


class PReluOnCodes(Pass):
    """Makes a PRelu between codes, for which there is no integer kernel, a product and a sum of codes.

    Before:  q -> DequantizeLinear(s, z) -> PRelu(slopes) -> QuantizeLinear(t, o) -> codes
    After:   q -> Clip(z, 255) -> DequantizeLinear(s, z) --------------------------------> Add -> QuantizeLinear(t, o)
             q -> Clip(0, z) -> DequantizeLinear(s, z) -> Mul(slopes) -> Q, DQ(t, o) ----> /

    PRelu(x) is max(x, 0) + slope min(x, 0) (He et al. 2015, arXiv 1502.01852, equation 1), of which one term is 0 for
    each element, so that nothing is rounded twice. Slopes are rounded to 8 bits, which moves a code by one at most.
    onnxruntime makes a QLinearMul and a QLinearAdd of it: half a nanosecond an element, where its PRelu takes 4.4, half
    of the time of a MobileFaceNet. Its Max and Min of codes would do as well, but not in all releases (1.16.3).
    Left alone: slopes that aren't constant, a PRelu that not only quantizers read.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        free = free_names(graph, f"{self.stem}p")
        add = NewNodes(graph, free)
        outputs = {id(tensor) for tensor in graph.outputs}
        ends = [add.scalar(end, np.uint8) for end in (_CODES.min, _CODES.max)]
        changed = False
        for node in list(graph.nodes):
            if not has_constant_slopes(node) or not is_between_codes(node, outputs):
                continue
            quantizers = list(node.outputs[0].outputs)
            codes, scale, zero = node.inputs[0].inputs[0].inputs
            above, below = (
                add("DequantizeLinear", [add("Clip", [codes, *bounds], np.uint8), scale, zero])
                for bounds in ((zero, ends[1]), (ends[0], zero))
            )
            slopes = np.atleast_1d(node.inputs[1].values)
            encoding = activation_encoding(float(slopes.min(initial=0)), float(slopes.max(initial=0)), 8)
            parts = quantize(slopes, encoding).astype(np.uint8), encoding.scale, np.array(encoding.zero_point, np.uint8)
            factor = add("DequantizeLinear", [gs.Constant(next(free), each) for each in parts])
            node.outputs.clear()
            for quantizer in quantizers:
                parameters = quantizer.inputs[1:]
                product = add("QuantizeLinear", [add("Mul", [below, factor]), *parameters], np.uint8)
                quantizer.inputs[0] = add("Add", [above, add("DequantizeLinear", [product, *parameters])])
            changed = True
        return changed


def has_constant_slopes(node: gs.Node) -> bool:
    """True for a PRelu of which it is known what it multiplies with."""
    return node.op == "PRelu" and is_standard(node) and isinstance(node.inputs[1], gs.Constant)
