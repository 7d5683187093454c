"""More channels for a quantized convolution: of its data and of its weight."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs

from amq_onnx.passes.new_nodes import NewNodes


class MoreChannels:
    """Pads the codes that convolutions read.

    Weights are padded with zeros when the model is loaded, so that the file has none of them.
    """

    def __init__(self, graph: gs.Graph, names: Iterator[str]) -> None:
        self.graph = graph
        self.names = names
        self.add = NewNodes(graph, names)

    def of_weight(self, conv: gs.Node, axis: int, count: int) -> None:
        """Add `count` channels of zeros to the weight of `conv`, at the end of `axis`; other readers of it keep theirs.

        Before:  codes [o, c, ..] (constant) -> DequantizeLinear -> Conv
        After:   codes -> Pad -> DequantizeLinear -> Conv
        """
        dequantize = self.own_maker(conv, 1)
        shape = list(conv.inputs[1].shape)
        dequantize.inputs[0] = self._padded(dequantize.inputs[0], len(shape), axis, count)
        shape[axis] += count
        conv.inputs[1].shape = shape

    def own_maker(self, node: gs.Node, place: int) -> gs.Node:
        """The node that makes what `node` reads at `place`, and for no other node: a second one where others read it.

        Before:  codes -> DequantizeLinear -> Conv, Conv
        After:   codes -> DequantizeLinear -> Conv
                 codes -> DequantizeLinear -> Conv
        """
        tensor = node.inputs[place]
        (maker,) = tensor.inputs
        if len(tensor.outputs) > 1:
            node.inputs[place] = gs.Variable(next(self.names), tensor.dtype, tensor.shape)
            maker = gs.Node(maker.op, "", dict(maker.attrs), list(maker.inputs), [node.inputs[place]])
            self.graph.nodes.append(maker)
        return maker

    def of_data(self, conv: gs.Node, count: int) -> None:
        """Let `conv` read `count` channels more, whose weights have to be 0; other readers of its data keep theirs.

        Before:  codes [n, c, ..] -> DequantizeLinear -> Conv
        After:   codes -> Pad -> DequantizeLinear -> Conv
        """
        codes, *parameters = conv.inputs[0].inputs[0].inputs
        padded = self._padded(codes, len(conv.inputs[1].shape), 1, count)
        conv.inputs[0] = self.add("DequantizeLinear", [padded, *parameters])

    def _padded(self, codes: gs.Tensor, rank: int, axis: int, count: int) -> gs.Tensor:
        ends = self.add.numbers(*(count if place == rank + axis else 0 for place in range(2 * rank)))
        return self.add("Pad", [codes, ends], codes.dtype)
