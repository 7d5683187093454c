"""Takes what a Loop or Scan hands from step to step as it came out of what it carries."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard, replace_readers


class ReadInvariantsOutside(Pass):
    """Lets the body of a Loop or Scan read a value that it hands on as it came where that comes from.

    Before:  Loop(n, true, h, W) { (i, c, h, w) -> MatMul(h, w) -> h2;  out: c, h2, w } -> y, last
    After:   Loop(n, true, h)    { (i, c, h)    -> MatMul(h, W) -> h2;  out: c, h2 }    -> y

    A body sees the tensors of the graph around it. What reads `last` reads W. tf2onnx writes the weights of some of
    Keras' recurrent layers so, and no layer is seen to read them. Left alone: values that are handed out in another
    place too, and those whose last is an output of a graph.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        parts = (graph, *graph.subgraphs(recursive=True))
        handed_out = Counter(id(tensor) for part in parts for tensor in part.outputs)
        for node in (node for part in parts for node in part.nodes):
            # From the last to the first, so that the places of those to come stay what they are.
            for carried in reversed(list(_carried(node))):
                if _is_invariant(carried, handed_out):
                    _read_outside(carried)
                    changed = True
        return changed


@dataclass(frozen=True)
class _Carried:
    """A value that `node` carries. taken: its place among the inputs of the node and of the node's body; handed_on:
    that among the outputs of the body; last: that among the outputs of the node."""

    node: gs.Node
    body: gs.Graph
    taken: int
    handed_on: int
    last: int


def _carried(node: gs.Node) -> Iterator[_Carried]:
    body = node.attrs.get("body")
    if not is_standard(node) or not isinstance(body, gs.Graph):
        return
    if node.op == "Loop":  # the count of steps and the condition come first, and the body makes a condition
        for place in range(len(node.inputs) - 2):
            yield _Carried(node, body, place + 2, place + 1, place)
    elif node.op == "Scan":
        for place in range(len(node.inputs) - node.attrs["num_scan_inputs"]):
            yield _Carried(node, body, place, place, place)


def _is_invariant(carried: _Carried, handed_out: Counter[int]) -> bool:
    node, inside = carried.node, carried.body.inputs[carried.taken]
    source = handed_on = carried.body.outputs[carried.handed_on]
    while source.inputs and source.inputs[0].op == "Identity":
        source = source.inputs[0].inputs[0]
    if source is not inside or not node.inputs[carried.taken].name or handed_out[id(inside)] > (handed_on is inside):
        return False
    return carried.last >= len(node.outputs) or not handed_out[id(node.outputs[carried.last])]


def _read_outside(carried: _Carried) -> None:
    node, body = carried.node, carried.body
    outside = node.inputs[carried.taken]
    replace_readers(body.inputs[carried.taken], outside)
    if carried.last < len(node.outputs):
        replace_readers(node.outputs[carried.last], outside)
        del node.outputs[carried.last]
    del node.inputs[carried.taken], body.inputs[carried.taken], body.outputs[carried.handed_on]
