"""Moves what subgraphs compute from constants alone out of them."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.names import drop_taken_node_names, free_name, taken_names


class HoistConstants(Pass):
    """Moves nodes that depend on constants only from subgraphs to the main graph, where they can be folded.

    Before:  If(c) { W -> Slice -> Concat -> Unsqueeze -> w;  LSTM(x, w) }
    After:   W -> Slice -> Concat -> Unsqueeze -> w;   If(c) { LSTM(x, w) }

    Left alone: nodes that make an output of their subgraph, nodes with subgraphs of their own.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        taken = taken_names(graph)
        moved: list[gs.Node] = []
        for inner in graph.subgraphs(recursive=True):
            outputs = {id(tensor) for tensor in inner.outputs}
            constant: set[int] = set()
            for node in list(inner.nodes):
                named = [tensor for tensor in node.inputs if tensor.name]
                if not named or any(isinstance(value, gs.Graph) for value in node.attrs.values()):
                    continue
                if not all(isinstance(tensor, gs.Constant) or id(tensor) in constant for tensor in named):
                    continue
                if any(id(tensor) in outputs for tensor in node.outputs):
                    continue
                inner.nodes.remove(node)
                for tensor in node.outputs:
                    constant.add(id(tensor))
                    tensor.name = free_name(tensor.name, taken)
                moved.append(node)
        drop_taken_node_names(graph, moved)
        graph.nodes[:0] = moved
        return bool(moved)
