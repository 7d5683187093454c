"""Makes convolutions of a transposed one, whose outputs are then put in their places."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.convolutions import changeable, given_pads
from amq_onnx.passes.interleaving import interleaved
from amq_onnx.passes.kernels import behind_absorbed
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes

# Several convolutions take some 4,000 bytes more for nodes and scales.
_WORTH_SEVERAL = 16_384


class TransposedConvolutions(Pass):
    """Makes a Conv of a ConvTranspose whose kernel is its stride, or several times that, and several of others.

    Before:  x [n, c, h, w] -> ConvTranspose(W [c, o, k s, k s], b, strides s) -> Relu -> y
    After:   x -> Conv(W' [s s o, c, k, k], b repeated, pads k - 1) -> Relu -> Transpose, [n, h', w', s s o]
               -> Reshape [n, h', w', s, s o] -> Transpose [n, h', s, w', s o] -> Reshape [n, s h', s w', o]
               -> Slice, of what ConvTranspose pads away -> Transpose -> y [n, o, ..]

    On an output's place in its s x s outputs depends which of the weights it is computed with, so that each place is a
    channel of its own: W'[(a, b, o), c, i, j] = W[c, o, a + s (k - 1 - i), b + s (k - 1 - j)], with no product more.
    Where the kernel is no multiple of the stride, places have kernels of several sizes (3 every 2: of two weights and
    of one): each has a Conv and a Relu, and a Concat stands in front of the first Transpose.

    onnxruntime has an integer kernel for that, and none for a ConvTranspose. Its integer convolutions are
    channels-last, so that places are put in order without touching single channels: with 128 inputs, 64 outputs, k = 1,
    s = 2 and 28 x 28 places, all takes 50 microseconds more than the convolutions around it, its ConvTranspose 400. So
    in one dimension and in three. Left alone: groups, dilations, weights that aren't constants or have other readers,
    kernels smaller than their stride, sizes that aren't given by pads, what makes an output of the graph, and what
    would be several convolutions of fewer than `least` weights in all.
    """

    def __init__(self, least: int = _WORTH_SEVERAL) -> None:
        self.least = least

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in list(graph.nodes):
            if node.op != "ConvTranspose" or not is_standard(node) or not changeable(node):
                continue
            made = behind_absorbed(node.outputs[0])
            if id(made) in outputs or id(node.outputs[0]) in outputs or (ends := _ends(node)) is None:
                continue
            if _are_several(node) and node.inputs[1].values.size < self.least:
                continue
            _replace(graph, node, made, ends)
            changed = True
        return changed


def _are_several(node: gs.Node) -> bool:
    """True where places have kernels of several sizes."""
    return any(size % stride for size, stride in zip(node.inputs[1].shape[2:], node.attrs["strides"], strict=True))


def _ends(node: gs.Node) -> tuple[list[int], list[int]] | None:
    """How much is cut off in front and behind, by dimension, of all places of all inputs and those that pads make; None
    where a ConvTranspose does more than that."""
    kernel, attributes = node.inputs[1].shape[2:], node.attrs
    strides = list(attributes.get("strides", ()))
    if len(strides) != len(kernel) or max(strides) == 1 or any(map(int.__lt__, kernel, strides)):
        return None
    if attributes.get("group", 1) != 1 or max(attributes.get("dilations", [1])) > 1 or "output_shape" in attributes:
        return None
    rank = len(kernel)
    pads = given_pads(node, rank)
    if pads is None:
        return None
    added = attributes.get("output_padding", [0] * rank)
    behind = [
        -(-size // stride) * stride - size + pad - more
        for size, stride, pad, more in zip(kernel, strides, pads[rank:], added, strict=True)
    ]
    return (pads[:rank], behind) if min(*pads, *behind) >= 0 else None


def _replace(graph: gs.Graph, node: gs.Node, made: gs.Tensor, ends: tuple[list[int], list[int]]) -> None:
    """Let convolutions and a reordering make `made` instead of `node` and the activations behind it."""
    names = free_names(graph, f"{node.inputs[1].name}_")
    add = NewNodes(graph, names)
    found = _convolutions(node, made, add)
    inside = found[0] if len(found) == 1 else add("Concat", found, axis=1)
    node.outputs.clear()
    made.inputs.clear()
    rank = len(ends[0])
    joined = interleaved(inside, node.attrs["strides"], node.inputs[1].shape[1], add)
    if any(ends[0]) or any(ends[1]):
        last = [-end if end else np.iinfo(np.int64).max for end in ends[1]]
        bounds = [add.numbers(*each) for each in (ends[0], last, range(1, rank + 1))]
        joined = add("Slice", [joined, *bounds])
    graph.nodes.append(gs.Node("Transpose", "", {"perm": [0, rank + 1, *range(1, rank + 1)]}, [joined], [made]))


def _convolutions(node: gs.Node, made: gs.Tensor, add: NewNodes) -> list[gs.Variable]:
    """What the convolutions make, of all places or of one each, behind the activations between `node` and `made`."""
    weights = _weights(node)
    most = [max(sizes) for sizes in zip(*(weight.shape[2:] for weight in weights), strict=True)]
    found: list[gs.Variable] = []
    for weight in weights:
        repeated = len(weight) // node.inputs[1].shape[1]
        values = [weight, *(np.tile(tensor.values, repeated) for tensor in node.inputs[2:])]
        names = [tensor.name if len(weights) == 1 else next(add.names) for tensor in node.inputs[1:]]
        parameters = [gs.Constant(name, each) for name, each in zip(names, values, strict=True)]
        sizes = weight.shape[2:]
        pads = [size - 1 for size in (*sizes, *most)]
        computed = add("Conv", [node.inputs[0], *parameters], kernel_shape=list(sizes), pads=pads)
        computed.inputs[0].name = "" if found else node.name
        tensor = node.outputs[0]
        while tensor is not made:
            step = tensor.outputs[0]
            computed = add(step.op, [computed, *step.inputs[1:]], **step.attrs)
            tensor = step.outputs[0]
        found.append(computed)
    return found


def _weights(node: gs.Node) -> list[NDArray[np.generic]]:
    """The weights of the convolutions, [outputs, c, ..]: of one for all places, or of one for each place."""
    values, strides = node.inputs[1].values, node.attrs["strides"]
    turned = tuple(range(2, values.ndim))
    places = [
        np.flip(
            values[(..., *(slice(first, None, stride) for first, stride in zip(place, strides, strict=True)))], turned
        )
        for place in product(*map(range, strides))
    ]
    places = [np.ascontiguousarray(np.swapaxes(place, 0, 1)) for place in places]
    return [np.concatenate(places)] if len({place.shape for place in places}) == 1 else places
