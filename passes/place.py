"""Moves dequantization behind operators that only move values."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass

# Their output holds only values of their first input, and they are defined on 8-bit integers (opset 13).
_CARRIERS = frozenset({"Flatten", "Identity", "MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})


class PlaceOnCodes(Pass):
    """Lets operators that only move values work on codes.

    Before:  codes -> DequantizeLinear -> x -> Slice -> y -> Conv
    After:   codes -> Slice -> DequantizeLinear -> y -> Conv

    Values and order stay the same bit for bit, and the operator moves a quarter of the bytes; runtimes find
    DequantizeLinear where they look for it, in front of the operator with an integer kernel. A Pad that fills
    with 0 fills with the zero point instead. Left alone: per-axis encodings, other pads, graph outputs.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        outputs = {id(tensor) for tensor in graph.outputs}
        waiting = [node for node in graph.nodes if node.op == "DequantizeLinear"]
        while waiting:
            dequantize = waiting.pop()
            if not _one_scale(dequantize):
                continue
            codes, *parameters = dequantize.inputs
            for carrier in list(dequantize.outputs[0].outputs):
                if not is_carrier(carrier) or id(carrier.outputs[0]) in outputs:
                    continue
                real = carrier.outputs[0]
                moved = gs.Variable(f"{dequantize.outputs[0].name}{len(graph.nodes)}", codes.dtype)
                carrier.inputs[0] = codes
                if carrier.op == "Pad":
                    _fill_with_zero_point(carrier, parameters)
                carrier.outputs = [moved]
                behind = gs.Node("DequantizeLinear", "", {}, [moved, *parameters], [real])
                graph.nodes.append(behind)
                waiting.append(behind)
                changed = True
        return changed


def is_carrier(node: gs.Node) -> bool:
    """True for an operator whose output holds no other numbers than its first input, or zeros besides."""
    if node.domain not in (None, "", "ai.onnx") or len(node.outputs) != 1:
        return False
    if node.op == "Pad":
        fill = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        constant = node.attrs.get("mode", "constant") == "constant"
        zero = fill is None or (isinstance(fill, gs.Constant) and not np.any(fill.values))
        return not constant or zero
    return node.op in _CARRIERS


def _one_scale(dequantize: gs.Node) -> bool:
    scale = dequantize.inputs[1]
    return isinstance(scale, gs.Constant) and scale.values.ndim == 0 and bool(dequantize.outputs)


def _fill_with_zero_point(pad: gs.Node, parameters: list[gs.Tensor]) -> None:
    if pad.attrs.get("mode", "constant") != "constant":
        return
    while len(pad.inputs) < 3:
        pad.inputs.append(gs.Variable.empty())
    pad.inputs[2] = parameters[1]
