"""Bounds what a quantizer reads by its codes."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard, only_reader, replace_readers


class ClipsOnCodes(Pass):
    """Makes bounds of codes of a Relu or Clip that only a quantizer reads, and nothing where the codes imply them.

    Before:  x -> Clip(a, b) -> QuantizeLinear(s, z) -> [Clip to codes low..high] -> codes
    After:   x -> QuantizeLinear(s, z) -> [Clip to codes max(low, q(a))..min(high, q(b))] -> codes

    q rounds as QuantizeLinear does. The codes are the same bit for bit, since that is monotone. onnxruntime drops such
    nodes too, but only those that the 8-bit range of QuantizeLinear implies, and others keep a Conv off the integer
    kernels: a Relu6 below 8 bits, or one whose bounds were moved (ClipsBehindAffine). Left alone: nodes that something
    else reads, graph outputs, bounds that aren't constants, scales along an axis.

    bounds: whether Clips of codes may be added or changed; without, only what is implied is dropped.
    """

    def __init__(self, bounds: bool = True) -> None:
        self.bounds = bounds

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        outputs = {id(tensor) for tensor in graph.outputs}
        for node in list(graph.nodes):
            ends = clip_bounds(node)
            quantize = only_reader(node, outputs) if ends is not None else None
            if ends is None or quantize is None or quantize.op != "QuantizeLinear" or len(quantize.inputs) < 3:
                continue
            scale, zero_point = quantize.inputs[1:3]
            if not (isinstance(scale, gs.Constant) and isinstance(zero_point, gs.Constant)) or scale.values.ndim:
                continue
            kind = np.iinfo(zero_point.dtype)
            steps = np.rint(np.asarray(ends, np.float32) / np.float32(scale.values))
            low, high = (int(code) for code in np.clip(steps + int(zero_point.values), kind.min, kind.max))
            bound = only_reader(quantize, outputs)
            known = (int(kind.min), int(kind.max))
            if bound is not None and bound.op == "Clip":
                known = int(bound.inputs[1].values), int(bound.inputs[2].values)
            else:
                bound = None
            if low > known[0] or high < known[1]:
                if not self.bounds or kind.bits > 8:  # onnxruntime has no Clip of wider ones
                    continue
                self._bound(graph, quantize, bound, max(low, known[0]), min(high, known[1]))
            quantize.inputs[0] = node.inputs[0]
            node.outputs.clear()
            changed = True
        return changed

    @staticmethod
    def _bound(graph: gs.Graph, quantize: gs.Node, bound: gs.Node | None, low: int, high: int) -> None:
        """Bound codes by `low` and `high`, in `bound` where there is such a node; a bound that it has stays."""
        codes, kind = quantize.outputs[0], quantize.inputs[2].dtype
        ends = [gs.Constant(f"{codes.name}{part}", np.array(code, kind)) for part, code in (("l", low), ("h", high))]
        if bound is not None:
            known = bound.inputs[1:]
            kept = [old if old.values == end.values else end for old, end in zip(known, ends, strict=True)]
            bound.inputs = [codes, *kept]
            return
        bounded = gs.Variable(f"{codes.name}c", codes.dtype)
        replace_readers(codes, bounded)
        graph.nodes.append(gs.Node("Clip", "", {}, [codes, *ends], [bounded]))


def clip_bounds(node: gs.Node) -> tuple[float, float] | None:
    """Least and largest output of a Relu or Clip of floats; None for other nodes and bounds that aren't constants."""
    if not is_standard(node) or node.op not in ("Relu", "Clip"):
        return None
    if node.op == "Relu":
        return 0.0, np.inf
    if "min" in node.attrs or "max" in node.attrs:  # before opset 11
        return float(node.attrs.get("min", -np.inf)), float(node.attrs.get("max", np.inf))
    ends = [-np.inf, np.inf]
    for position, tensor in enumerate(node.inputs[1:3]):
        if not tensor.name:
            continue
        if not isinstance(tensor, gs.Constant) or not np.issubdtype(tensor.values.dtype, np.floating):
            return None
        ends[position] = float(tensor.values)
    return ends[0], ends[1]
