"""Folds factors and shifts behind a convolution, and in front of one, into it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.affine import Affine, affine
from amq_onnx.passes.base import Pass, is_standard, only_reader

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
            if conv.op not in ("Conv", "ConvTranspose") or not _foldable(conv):
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
        weight = conv.inputs[1]
        values = weight.values.astype(np.float64)
        bias = conv.inputs[2].values.astype(np.float64) if len(conv.inputs) > 2 else np.zeros(_channels(conv))
        if conv.op == "Conv":
            scaled = values * factor.reshape(-1, *[1] * (values.ndim - 1))
        else:  # [inputs, outputs of a group, ...], the inputs of each group one after another
            groups = conv.attrs.get("group", 1)
            grouped = values.reshape(groups, -1, *values.shape[1:])
            scaled = (grouped * factor.reshape(groups, 1, -1, *[1] * (values.ndim - 2))).reshape(values.shape)
        dtype = weight.values.dtype
        # The bias takes the weight's name as its stem: the other constants' names say nothing of the convolution.
        name = conv.inputs[2].name if len(conv.inputs) > 2 else f"{weight.name}.bias"
        weight.values = scaled.astype(dtype)
        conv.inputs = [conv.inputs[0], weight, gs.Constant(name, (bias * factor + shift).astype(dtype))]


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
        for tensor in [node.outputs[0] for node in graph.nodes if node.op in ("Add", "Div", "Mul", "Sub")]:
            found = affine(tensor)
            convs = list(tensor.outputs)
            if not found.nodes or id(tensor) in outputs or not convs or not all(map(_reads_affine, convs)):
                continue
            padded = any(_pads(conv) for conv in convs)
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
            weight = conv.inputs[1]
            values = weight.values.astype(np.float64)
            conv.inputs[0] = read
            weight.values = (values * found.factor).astype(np.float32)
            if found.shift and not padded:
                added = values.reshape(len(values), -1).sum(1) * found.shift
                name = conv.inputs[2].name if len(conv.inputs) > 2 else f"{weight.name}.bias"
                bias = conv.inputs[2].values if len(conv.inputs) > 2 else 0.0
                conv.inputs = [*conv.inputs[:2], gs.Constant(name, (bias + added).astype(np.float32))]


def takes_affine(tensor: gs.Tensor) -> bool:
    """Whether all that read `tensor` are convolutions that take a factor and a shift in front of them."""
    return bool(tensor.outputs) and all(_reads_affine(node) and not _pads(node) for node in tensor.outputs)


def _reads_affine(node: gs.Node) -> bool:
    return node.op == "Conv" and is_standard(node) and _foldable(node)


def _pads(conv: gs.Node) -> bool:
    return conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or any(conv.attrs.get("pads", ()))


def _affine(node: gs.Node, conv: gs.Node) -> tuple[Channels, Channels] | None:
    """Factor and shift of each channel, if that is all that `node` does."""
    channels, rank = _channels(conv), len(conv.inputs[1].shape)
    ones, zeros = np.ones(channels), np.zeros(channels)
    if node.op == "BatchNormalization":
        if node.attrs.get("training_mode", 0) or not _constants(node.inputs[1:5]):
            return None
        scale, shift, mean, variance = (tensor.values.astype(np.float64) for tensor in node.inputs[1:5])
        factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
        return factor, shift - mean * factor
    if node.op not in ("Add", "Div", "Mul", "Sub") or node.inputs[0] is node.inputs[1]:
        return None
    first = node.inputs[0] is conv.outputs[0]
    number = _per_channel(node.inputs[1 if first else 0], channels, rank)
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


def _per_channel(tensor: gs.Tensor, channels: int, rank: int) -> Channels | None:
    """The constant as one number a channel, if it is that or a single number."""
    if not isinstance(tensor, gs.Constant) or len(tensor.shape) > rank:
        return None
    values = tensor.values.astype(np.float64)
    if values.size == 1:
        return np.full(channels, values.reshape(-1)[0])
    shape = (1,) * (rank - values.ndim) + values.shape
    return values.reshape(-1) if shape == (1, channels, *[1] * (rank - 2)) else None


def _channels(conv: gs.Node) -> int:
    shape = conv.inputs[1].shape
    return int(shape[0] if conv.op == "Conv" else shape[1] * conv.attrs.get("group", 1))


def _foldable(conv: gs.Node) -> bool:
    parameters = conv.inputs[1:]
    return _constants(parameters) and all(len(tensor.outputs) == 1 for tensor in parameters)


def _constants(tensors: list[gs.Tensor]) -> bool:
    return all(isinstance(tensor, gs.Constant) for tensor in tensors)
