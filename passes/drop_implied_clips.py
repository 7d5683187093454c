"""Removes Relu and Clip nodes whose bounds a quantizer implies."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass


class DropImpliedClips(Pass):
    """Removes a Relu or Clip that only a quantizer of a narrower range reads.

    Before:  x -> Clip(0, 6) -> QuantizeLinear(scale, zero point) -> [Clip to codes low..high] -> codes
    After:   x ---------------> QuantizeLinear(scale, zero point) -> [Clip to codes low..high] -> codes

    Where (low - zero point) * scale is not below the node's minimum and (high - zero point) * scale not above its
    maximum, the codes are the same bit for bit: rounding is monotone. onnxruntime drops such nodes too, but judges
    by the 8-bit range of QuantizeLinear alone, so that below 8 bits a Relu6 would keep its Conv off the integer
    kernels. Left alone: nodes that something else reads, graph outputs, bounds that aren't constants.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        outputs = {id(tensor) for tensor in graph.outputs}
        for node in graph.nodes:
            bounds = _bounds(node)
            if bounds is None or id(node.outputs[0]) in outputs or len(node.outputs[0].outputs) != 1:
                continue
            quantizer = node.outputs[0].outputs[0]
            reach = _reach(quantizer)
            if reach is None or reach[0] < bounds[0] or reach[1] > bounds[1]:
                continue
            quantizer.inputs[0] = node.inputs[0]
            node.outputs.clear()
            changed = True
        return changed


def _bounds(node: gs.Node) -> tuple[float, float] | None:
    """Least and largest output of a Relu or Clip of floats."""
    if node.op == "Relu":
        return 0.0, np.inf
    if node.op != "Clip":
        return None
    if "min" in node.attrs or "max" in node.attrs:  # before opset 11
        return float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))
    low, high = -np.inf, np.inf
    for position, tensor in enumerate(node.inputs[1:3]):
        if not tensor.name:
            continue
        if not isinstance(tensor, gs.Constant) or not np.issubdtype(tensor.values.dtype, np.floating):
            return None
        if position == 0:
            low = float(tensor.values)
        else:
            high = float(tensor.values)
    return low, high


def _reach(quantizer: gs.Node) -> tuple[float, float] | None:
    """Least and largest real number of the codes that leave a quantizer and the Clip behind it."""
    if quantizer.op != "QuantizeLinear" or len(quantizer.inputs) < 3:
        return None
    scale, zero_point = quantizer.inputs[1:3]
    if not (isinstance(scale, gs.Constant) and isinstance(zero_point, gs.Constant)) or scale.values.ndim:
        return None
    kind = np.iinfo(zero_point.values.dtype)
    low, high = int(kind.min), int(kind.max)
    readers = quantizer.outputs[0].outputs
    if len(readers) == 1 and readers[0].op == "Clip":
        low, high = (int(bound.values) for bound in readers[0].inputs[1:3])
    zero, step = int(zero_point.values), float(scale.values)
    return (low - zero) * step, (high - zero) * step
