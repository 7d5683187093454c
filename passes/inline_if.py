"""Replaces If nodes whose condition is a constant by the branch that it takes."""

from __future__ import annotations

from collections import Counter

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.names import drop_taken_node_names, free_name, taken_names


class InlineConstantIf(Pass):
    """Puts the nodes of the branch taken in place of the node, at any depth.

    Before:  If(true) { then: x -> Conv -> t;  else: x -> Identity -> e } -> y
    After:   x -> Conv -> y

    Tensors whose names other subgraphs use too get new ones. A branch that hands out a tensor of the graph around it,
    or one that it reads itself, does so through an Identity.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        return self._inline(graph, taken_names(graph))

    def _inline(self, graph: gs.Graph, taken: Counter[str]) -> bool:
        changed = False
        for node in list(graph.nodes):
            if node.op == "If" and isinstance(node.inputs[0], gs.Constant):
                _replace(graph, node, taken)
                changed = True
                continue
            for value in node.attrs.values():
                if isinstance(value, gs.Graph):
                    changed = self._inline(value, taken) or changed
        if changed:  # what was inlined may hold further nodes of the kind
            self._inline(graph, taken)
        return changed


def _replace(graph: gs.Graph, node: gs.Node, taken: Counter[str]) -> None:
    branch = node.attrs["then_branch" if bool(node.inputs[0].values.any()) else "else_branch"]
    position = graph.nodes.index(node)
    outputs = list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    nodes = list(branch.nodes)
    made = {id(tensor): tensor for inner in nodes for tensor in inner.outputs}
    for tensor in made.values():
        tensor.name = free_name(tensor.name, taken)
    for inside, outside in zip(branch.outputs, outputs, strict=True):
        if id(inside) not in made or inside.outputs:
            nodes.append(gs.Node("Identity", "", {}, [inside], [outside]))
            continue
        producer = inside.inputs[0]
        producer.outputs = [outside if output is inside else output for output in producer.outputs]
    drop_taken_node_names(graph, nodes)
    graph.nodes[position : position + 1] = nodes
