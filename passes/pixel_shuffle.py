"""Moves what a DepthToSpace moves in rows of channels."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard, only_reader
from amq_onnx.passes.convolutions import channels, is_changeable_conv
from amq_onnx.passes.interleaving import interleaved
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes

# What may stand between a convolution and the DepthToSpace: it treats all channels alike.
_ACTIVATIONS = frozenset({"Clip", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})


class PixelShuffles(Pass):
    """Writes a DepthToSpace of what a Conv makes as a reordering of rows of channels.

    Before:  x -> Conv(W [o s s, c, ..]) -> Relu -> DepthToSpace(s, CRD) -> y [n, o, s h, s w]
    After:   x -> Conv(W' [s s o, c, ..]) -> Relu -> Transpose, [n, h, w, s s o] -> Reshape [n, h, w, s, s o]
               -> Transpose [n, h, s, w, s o] -> Reshape [n, s h, s w, o] -> Transpose -> y

    Weights are put in order, W'[(a, b, o)] = W[(o, a, b)], so that all o channels of a place are moved at once; mode
    DCR has them in that order. Behind a quantized Conv those are rows of codes, channels-last as onnxruntime's integer
    convolutions are: where 256 channels of 96x96 take its DepthToSpace 14.8 ms, the Transposes take 3.0. Left alone: a
    Conv of groups or whose weights others read, what something else reads in between, and what makes an output of the
    graph.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in list(graph.nodes):
            if node.op != "DepthToSpace" or not is_standard(node) or id(node.outputs[0]) in outputs:
                continue
            conv = _convolution(node, outputs)
            if conv is None:
                continue
            size, inside, made = int(node.attrs["blocksize"]), node.inputs[0], node.outputs[0]
            count = channels(conv) // size**2
            if node.attrs.get("mode", "DCR") == "CRD":
                for parameter in conv.inputs[1:]:
                    by_place = parameter.values.reshape(count, size**2, -1)
                    parameter.values = by_place.swapaxes(0, 1).reshape(parameter.values.shape)
            node.outputs.clear()
            add = NewNodes(graph, free_names(graph, f"{conv.inputs[1].name}_"))
            placed = interleaved(inside, (size, size), count, add)
            graph.nodes.append(gs.Node("Transpose", "", {"perm": [0, 3, 1, 2]}, [placed], [made]))
            changed = True
        return changed


def _convolution(node: gs.Node, outputs: set[int]) -> gs.Node | None:
    """The Conv of one group whose outputs `node` alone moves, behind activations; None where there is none."""
    made = node.inputs[0].inputs
    while made and made[0].op in _ACTIVATIONS and only_reader(made[0], outputs) is not None:
        made = made[0].inputs[0].inputs
    if not made or not is_changeable_conv(made[0]) or only_reader(made[0], outputs) is None:
        return None
    return made[0] if made[0].attrs.get("group", 1) == 1 else None
