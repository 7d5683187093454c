"""Gives convolutions as many output channels as onnxruntime's integer kernels take."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.channels import MoreChannels
from amq_onnx.passes.kernels import CODE_BOUNDS, behind_absorbed, integer_convolutions, maker
from amq_onnx.passes.names import free_names

# What MlasConvSym asks for: 16 output channels at least, depthwise in sixteens; input channels in fours.
_OUTPUTS, _INPUTS = 16, 4
# What a Conv of one input and one output gets instead, from as many positions of its kernel on.
_SINGLE_OUTPUTS, _SINGLE_POSITIONS = 4, 10


class AlignOutputs(Pass):
    """Lets a quantized depthwise Conv compute a multiple of 16 channels, and others, but for 1x1, no fewer than 16.

    A filter of one input and one output, which onnxruntime takes for depthwise, gets 4, so that it is a matrix there.

    Before:  DequantizeLinear -> Conv [72, i, ..] -> Q, DQ -> Conv [72, 1, ..] (group=72) -> Q, DQ -> Conv [o, 72, ..]
                                                                                                  \\-> others
    After:   DequantizeLinear -> Conv [80, i, ..] -> Q, DQ -> Conv [80, 1, ..] (group=80) -> Q, DQ -> Conv [o, 80, ..]
                                                                                         \\-> Slice(72) -> DQ -> others

    The sums are the same: weights and biases of the channels that are added are 0, and their scales repeat the last
    one. Convs in front add them and Convs behind drop them; whatever else reads them reads the first ones. Weights are
    padded when the model is loaded; the file has only the scales and biases of the new channels. onnxruntime multiplies
    other numbers of channels as matrices or row by row instead, in two to four times the time (docs/packing.md):
    MobileNetV3, ShuffleNet and networks whose channels were scaled or pruned have such, and those that make images.
    Where several read a weight or its parameters, others keep theirs. Left alone: depthwise Convs whose data no Conv of
    one group makes, tensors that are outputs of the graph.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        widening = _Widening(graph, self.stem)
        changed = False
        for conv in widening.integer.values():
            outputs, inputs, *kernel = conv.inputs[1].shape
            widened, multiple = None, _OUTPUTS
            if widening.is_depthwise(conv) and outputs % _OUTPUTS and widening.can_widen(conv):
                widened = _in_front(conv)
            elif outputs < _OUTPUTS and inputs % _INPUTS == 0 and math.prod(kernel) > 1:
                widened = conv
            elif outputs == inputs == 1 and math.prod(kernel) >= _SINGLE_POSITIONS:
                widened, multiple = conv, _SINGLE_OUTPUTS
            if widened is not None and widening.is_dense(widened) and widening.can_widen(widened):
                widening.widen(widened, -outputs % multiple)
                changed = True
        return changed


class _Widening:
    """How convolutions of a graph on integer kernels get more output channels. integer: these, by id."""

    def __init__(self, graph: gs.Graph, stem: str) -> None:
        self.graph = graph
        self.integer = {id(conv): conv for conv, *_ in integer_convolutions(graph)}
        parts = (graph, *graph.subgraphs(recursive=True))
        self.outputs = {id(tensor) for part in parts for tensor in part.outputs}
        self.names = free_names(graph, f"{stem}d")
        self.more = MoreChannels(graph, self.names)

    def is_dense(self, node: gs.Node) -> bool:
        """True for a Conv of one group."""
        return id(node) in self.integer and node.attrs.get("group", 1) == 1

    def is_depthwise(self, node: gs.Node) -> bool:
        """True for a Conv of several groups of one input and one output each."""
        groups = node.attrs.get("group", 1)
        return id(node) in self.integer and groups > 1 and list(node.inputs[1].shape[:2]) == [groups, 1]

    def can_widen(self, conv: gs.Node) -> bool:
        """Whether all that has a number for each output channel of `conv` is known, and what it makes is codes."""
        return self.outputs.isdisjoint(id(tensor) for tensor in _made(conv)) and _is_known(conv)

    def widen(self, conv: gs.Node, count: int) -> None:
        """Add `count` output channels to `conv`, and let all that reads them drop or pass them on."""
        channels = conv.inputs[1].shape[0]
        if self.is_depthwise(conv):
            conv.attrs["group"] = channels + count
        self.more.of_weight(conv, 0, count)
        self._extend_parameters(conv, count)
        made = _made(conv)
        for tensor in made:
            tensor.shape = None
        for quantizer in made[-1].outputs:
            self._pass_on(quantizer.outputs[0], channels, count)

    def _extend_parameters(self, conv: gs.Node, count: int) -> None:
        """Give `count` more channels to scales, zero points and the bias of `conv`; see `_is_known`."""
        dequantize = conv.inputs[1].inputs[0]
        scale = dequantize.inputs[1]
        own = [dequantize, conv]
        for place, bias in enumerate(conv.inputs[2:], 2):
            if bias.inputs:
                added = self.more.own_maker(conv, place)
                product = self.more.own_maker(added, 1)
                conv.inputs[place].shape = added.inputs[1].shape = None
                own += [added, product]
                self._extend(added.inputs[0], count, own)
            else:
                self._extend(bias, count, own)
        self._extend(scale, count, own, "edge")
        for zero_point in dequantize.inputs[2:]:
            self._extend(zero_point, count, own)

    def _extend(
        self, vector: gs.Constant, count: int, own: list[gs.Node], mode: Literal["constant", "edge"] = "constant"
    ) -> None:
        """Add `count` numbers to a constant with one a channel, for the nodes `own` alone."""
        if not vector.values.ndim:
            return
        values = np.pad(vector.values, (0, count), mode)
        if {id(node) for node in vector.outputs} <= {id(node) for node in own}:
            vector.values = values
            return
        longer = gs.Constant(next(self.names), values)
        for node in own:
            node.inputs = [longer if tensor is vector else tensor for tensor in node.inputs]

    def _pass_on(self, codes: gs.Tensor, channels: int, count: int) -> None:
        """Let the readers of `codes`, which had as many `channels`, take `count` more, or read the first ones alone."""
        codes.shape = None
        others = []
        for reader in list(codes.outputs):
            if _is_bound(reader):
                self._pass_on(reader.outputs[0], channels, count)
                continue
            if reader.op == "DequantizeLinear":
                self._widen_readers(reader, count)
                if not reader.outputs[0].outputs and id(reader.outputs[0]) not in self.outputs:
                    reader.outputs.clear()
                    continue
            others.append(reader)
        if not others:
            return
        bounds = [self.more.add.numbers(number) for number in (0, channels, 1)]
        first = self.more.add("Slice", [codes, *bounds], codes.dtype)
        for reader in others:
            reader.inputs = [first if tensor is codes else tensor for tensor in reader.inputs]

    def _widen_readers(self, dequantize: gs.Node, count: int) -> None:
        """Let those convolutions that can read `count` more channels do so, behind a DequantizeLinear of their own."""
        real = dequantize.outputs[0]
        taking = [node for node in real.outputs if node.inputs[0] is real and self._takes(node)]
        if not taking:
            return
        wide = self.more.add("DequantizeLinear", dequantize.inputs)
        for node in taking:
            node.inputs[0] = wide
            if self.is_dense(node):
                self.more.of_weight(node, 1, count)
            else:
                self.widen(node, count)

    def _takes(self, node: gs.Node) -> bool:
        return self.is_dense(node) or (self.is_depthwise(node) and self.can_widen(node))


def _in_front(conv: gs.Node) -> gs.Node | None:
    """The node that makes what `conv` reads the codes of, in front of what bounds these and of what a quantizer
    absorbs."""
    made = conv.inputs[0].inputs[0].inputs[0].inputs
    while made and _is_bound(made[0]):
        made = made[0].inputs[0].inputs
    if not made or made[0].op != "QuantizeLinear":
        return None
    return maker(made[0].inputs[0])


def _is_bound(node: gs.Node) -> bool:
    """True for what bounds codes by a number for all channels."""
    return node.op in CODE_BOUNDS and all(isinstance(t, gs.Constant) and t.values.size == 1 for t in node.inputs[1:])


def _made(conv: gs.Node) -> list[gs.Tensor]:
    """What `conv` makes, up to what quantizers read: behind each operator that they absorb."""
    found = [conv.outputs[0]]
    while found[-1] is not behind_absorbed(conv.outputs[0]):
        found.append(found[-1].outputs[0].outputs[0])
    return found


def _is_known(conv: gs.Node) -> bool:
    """Whether what has a number for each output channel of `conv` is constant: scales and zero points of its weight,
    its bias, or the bias's codes, whose scales follow from those of the weight as QuantizeBiases has them."""
    parameters = list(conv.inputs[1].inputs[0].inputs[1:])
    for bias in conv.inputs[2:]:
        if bias.inputs:
            codes, scale, *_ = bias.inputs[0].inputs
            product = scale.inputs[0] if scale.inputs else None
            if product is None or product.op != "Mul" or not any(t is parameters[0] for t in product.inputs):
                return False
            bias = codes
        parameters.append(bias)
    return all(isinstance(parameter, gs.Constant) for parameter in parameters)
