"""Folds factors and shifts behind a convolution, and in front of one, into it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.affine import ARITHMETIC, Affine, affine
from amq_onnx.passes.base import Pass, only_reader
from amq_onnx.passes.convolutions import all_constant, bias, change, changeable, channels, is_changeable_conv, pads

Channels = NDArray[np.float64]


class FoldAffine(Pass):
    """Folds an inference BatchNormalization, or arithmetic with constants, into the convolution that alone feeds it.

    Before:  x -> Conv(W, b) -> y -> BatchNormalization(scale, shift, mean, var) -> z
             x -> Conv(W, b) -> y -> Mul(k) -> Add(c) -> z                  k, c: one number, or one per channel
    After:   x -> Conv(W * k, b * k + c) -> z;  for the norm k = scale / sqrt(var + epsilon), c = shift - mean * k

    So for ConvTranspose, Div and Sub. Left alone: a convolution whose output has other readers, weights that aren't
    constants or have other readers, constants of other shapes, training mode. Computed in float64, stored in the
    type of W.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for conv in graph.nodes:
            if conv.op not in ("Conv", "ConvTranspose") or not changeable(conv):
                continue
            while (behind := only_reader(conv, outputs)) is not None:
                affine = _affine(behind, conv)
                if affine is None:
                    break
                self._fold(conv, *affine)
                output = behind.outputs[0]
                behind.outputs.clear()
                behind.inputs.clear()
                conv.outputs = [output]
                changed = True
        return changed

    @staticmethod
    def _fold(conv: gs.Node, factor: Channels, shift: Channels) -> None:
        values = conv.inputs[1].values.astype(np.float64)
        if conv.op == "Conv":
            scaled = values * factor.reshape(-1, *[1] * (values.ndim - 1))
        else:  # [inputs, outputs of a group, ...], the inputs of each group one after another
            groups = conv.attrs.get("group", 1)
            grouped = values.reshape(groups, -1, *values.shape[1:])
            scaled = (grouped * factor.reshape(groups, 1, -1, *[1] * (values.ndim - 2))).reshape(values.shape)
        change(conv, scaled, bias(conv) * factor + shift)


class FoldAffineForward(Pass):
    """Folds a factor and a shift, one number each, into all the convolutions that read what they make.

    Before:  x -> Mul(k) -> Add(c) -> y -> Conv(W, b)
    After:   x -> Conv(W * k, b + sum(W) * c)          the sum is over a channel's weights
             x -> Add(c / k) -> Conv(W * k, b)         where one of them pads: what it pads with stays 0

    So for Div and Sub. Left alone: what something else reads, weights that aren't constants or have other readers,
    factors of 0 and less.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for tensor in [node.outputs[0] for node in graph.nodes if node.op in ARITHMETIC]:
            found = affine(tensor)
            convs = list(tensor.outputs)
            if not found.nodes or id(tensor) in outputs or not convs or not all(map(is_changeable_conv, convs)):
                continue
            padded = any(map(pads, convs))
            if padded and found.factor == 1.0 and found.shift:
                continue
            self._fold(graph, convs, found, tensor, padded)
            changed = True
        return changed

    @staticmethod
    def _fold(graph: gs.Graph, convs: list[gs.Node], found: Affine, tensor: gs.Tensor, padded: bool) -> None:
        read = found.source
        if padded and found.shift:
            read = gs.Variable(f"{tensor.name}_shifted", np.float32, tensor.shape)
            number = gs.Constant(f"{tensor.name}_shift", np.asarray(found.shift / found.factor, np.float32))
            graph.nodes.append(gs.Node("Add", "", {}, [found.source, number], [read]))
        for conv in convs:
            conv.inputs[0] = read
            values = conv.inputs[1].values.astype(np.float64)
            if padded or not found.shift:
                conv.inputs[1].values = (values * found.factor).astype(conv.inputs[1].values.dtype)
            else:
                added = values.reshape(len(values), -1).sum(1) * found.shift
                change(conv, values * found.factor, bias(conv) + added)


def takes_affine(tensor: gs.Tensor) -> bool:
    """Whether all that read `tensor` are convolutions that take a factor and a shift in front of them."""
    return bool(tensor.outputs) and all(is_changeable_conv(node) and not pads(node) for node in tensor.outputs)


def _affine(node: gs.Node, conv: gs.Node) -> tuple[Channels, Channels] | None:
    """Factor and shift of each channel, if that is all that `node` does."""
    made, rank = channels(conv), len(conv.inputs[1].shape)
    ones, zeros = np.ones(made), np.zeros(made)
    if node.op == "BatchNormalization":
        return norm_affine(node)
    if node.op not in ARITHMETIC or node.inputs[0] is node.inputs[1]:
        return None
    first = node.inputs[0] is conv.outputs[0]
    number = per_channel(node.inputs[1 if first else 0], made, rank)
    if number is None:
        return None
    match node.op:
        case "Add":
            return ones, number
        case "Mul":
            return number, zeros
        case "Sub":
            return (ones, -number) if first else (-ones, number)
        case _:
            return (1 / number, zeros) if first and number.all() else None


def norm_affine(node: gs.Node) -> tuple[Channels, Channels] | None:
    """Factor and shift of each channel of an inference BatchNormalization with constant parameters."""
    if node.attrs.get("training_mode", 0) or not all_constant(node.inputs[1:5]):
        return None
    scale, shift, mean, variance = (tensor.values.astype(np.float64) for tensor in node.inputs[1:5])
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return factor, shift - mean * factor


def per_channel(tensor: gs.Tensor, made: int, rank: int) -> Channels | None:
    """The constant as one number a channel, if it is that or a single number."""
    if not isinstance(tensor, gs.Constant) or len(tensor.shape) > rank:
        return None
    values = tensor.values.astype(np.float64)
    if values.size == 1:
        return np.full(made, values.reshape(-1)[0])
    shape = (1,) * (rank - values.ndim) + values.shape
    return values.reshape(-1) if shape == (1, made, *[1] * (rank - 2)) else None
