"""Bounds float products of integer kernels by operators that onnxruntime lets stand behind them."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, only_reader
from amq_onnx.passes.clips_on_codes import clip_bounds
from amq_onnx.passes.kernels import is_integer
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes


class MaxForRelu(Pass):
    """Writes a Relu or Clip whose output stays float, behind a Gemm or MatMul on an integer kernel, as Max and Min.

    Before:  DequantizeLinear, DequantizeLinear -> MatMul -> Clip(a, b) -> Softmax
    After:   DequantizeLinear, DequantizeLinear -> MatMul -> Max(a) -> Min(b) -> Softmax

    The numbers are the same. onnxruntime takes a Relu or Clip for a part of the quantizer behind it, and where there is
    none it leaves the layer in float (1.31), its weight dequantized anew at every run. Left alone: those that only
    quantizers read, graph outputs, products that something else reads, bounds that aren't constants.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        add = NewNodes(graph, free_names(graph, f"{self.stem}m"))
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in list(graph.nodes):
            bound = only_reader(node, outputs) if node.op != "Conv" and is_integer(node) else None
            ends = clip_bounds(bound) if bound is not None else None
            if bound is None or ends is None or all(each.op == "QuantizeLinear" for each in bound.outputs[0].outputs):
                continue
            kept = [(operator, end) for operator, end in zip(("Max", "Min"), ends, strict=True) if np.isfinite(end)]
            if not kept:
                continue
            tensor, result = node.outputs[0], bound.outputs[0]
            bound.outputs.clear()
            for operator, end in kept:
                tensor = add(operator, [tensor, add.scalar(end)])
            tensor.inputs[0].outputs = [result]
            changed = True
        return changed
