"""Computes convolutions whose outputs may not be rounded as products of matrices."""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import pairwise

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.convolutions import all_constant, given_pads
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes

# From so many inputs on the product takes less time than the convolution of floats, which computes outputs in sixteens;
# with several positions, from so many times the outputs on, since adding up takes time as well ...
_INPUTS, _OUTPUTS, _ADDING = 16, 16, 5
# ... and there may be so many times as many numbers to add up as are read, for the sake of memory.
_RESULTS = 8
# Bytes of the nodes that add up positions, and the share of all constants, in floats, that they may take.
_ADDED_BYTES, _SHARE = 1000, 0.002


class OutputProducts(Pass):
    """Makes a MatMul of a Conv that computes in float because what it makes leaves the graph.

    Before:  x [n, c, h, w] -> Conv(W [o, c, 3, 3], b, pads 1) -> y
    After:   x -> Transpose, [n, h, w, c] -> MatMul(W' [c, 3 3 o]) -> Add(b' [3 3 o]) -> Pad(1), [n, h+2, w+2, 3 3 o]
               -> 3 Slices [n, h, w+2, 3 o] -> Adds -> 3 Slices [n, h, w, o] -> Adds -> Transpose -> y

    The sums are the same: each position of the kernel is multiplied on its own, W'[c, (i, j, o)] = W[o, c, i, j], and
    they are added up where they meet; b' is b at the position that is never padded. A 1x1 Conv is a MatMul and no more.
    onnxruntime's QLinearConv rounds what it makes; of codes and a quantized matrix it has an integer kernel that makes
    floats: 64 channels of 192x192 to 3 by 3x3 take 3.0 ms, its Conv of floats 15.2, with what it is given dequantized.
    Left alone: strides, dilations, groups, pads that make an image larger, few inputs, results that take too much
    memory or time to add up, such sums in very small networks, and weights that others read as well.

    names: of the outputs of these Convs.
    """

    def __init__(self, names: Collection[str]) -> None:
        self.names = frozenset(names)

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        constants = [tensor for tensor in graph.tensors().values() if isinstance(tensor, gs.Constant)]
        small = _SHARE * 4 * sum(math.prod(tensor.shape) for tensor in constants) < _ADDED_BYTES
        chosen = {
            id(node): node
            for node in graph.nodes
            if node.op == "Conv" and node.outputs[0].name in self.names and _is_product(node, several=not small)
        }
        alone = [node for node in chosen.values() if _readers(node) <= chosen.keys()]
        parameters: dict[tuple[int, tuple[int, ...]], gs.Constant] = {}
        for node in alone:
            _replace(graph, node, parameters)
        return bool(alone)


def _is_product(conv: gs.Node, *, several: bool) -> bool:
    """Whether a product takes less time than `conv`. several: whether its kernel may have several positions."""
    attributes = conv.attrs
    if not is_standard(conv) or not all_constant(conv.inputs[1:]) or attributes.get("group", 1) != 1:
        return False
    if max(attributes.get("strides", [1])) > 1 or max(attributes.get("dilations", [1])) > 1:
        return False
    outputs, inputs, *kernel = conv.inputs[1].shape
    pads = given_pads(conv, len(kernel))
    if pads is None or any(sum(pads[axis :: len(kernel)]) >= size for axis, size in enumerate(kernel)):
        return False
    positions = math.prod(kernel)
    if inputs < _INPUTS or positions == 1:
        return bool(inputs >= _INPUTS)
    fast = inputs * math.ceil(outputs / _OUTPUTS) >= _ADDING * outputs
    return bool(several and fast and positions * outputs <= _RESULTS * inputs)


def _readers(conv: gs.Node) -> set[int]:
    """Ids of the nodes that read the weight or the bias of `conv`."""
    return {id(reader) for parameter in conv.inputs[1:] for reader in parameter.outputs}


def _replace(graph: gs.Graph, conv: gs.Node, parameters: dict[tuple[int, tuple[int, ...]], gs.Constant]) -> None:
    """Let a product, added up over the positions of its kernel, make what `conv` makes.

    parameters: weights and biases made so far, by the id of what they are made of and the position that has the bias.
    """
    data, weight, *bias = conv.inputs
    made = conv.outputs[0]
    outputs, inputs, *kernel = weight.shape
    rank = len(kernel)
    pads = given_pads(conv, rank) or []
    add = NewNodes(graph, free_names(graph, f"{weight.name}_"))
    unpadded = tuple(pads[:rank])
    if (id(weight), ()) not in parameters:
        matrix = np.ascontiguousarray(np.moveaxis(weight.values, 0, -1).reshape(inputs, -1))
        parameters[id(weight), ()] = gs.Constant(weight.name, matrix)
    found = add("Transpose", [data], perm=[0, *range(2, rank + 2), 1])
    found = add("MatMul", [found, parameters[id(weight), ()]])
    found.inputs[0].name = conv.name
    for shift in bias:
        if (id(shift), unpadded) not in parameters:
            values = np.zeros((*kernel, outputs), shift.dtype)
            values[unpadded] = shift.values
            known = any(constant.name == shift.name for constant in parameters.values())
            parameters[id(shift), unpadded] = gs.Constant(next(add.names) if known else shift.name, values.ravel())
        found = add("Add", [found, parameters[id(shift), unpadded]])
    if any(pads):
        found = add("Pad", [found, add.numbers(0, *pads[:rank], 0, 0, *pads[rank:], 0)])
    for axis, size in enumerate(kernel, 1):
        channels = math.prod(kernel[axis:]) * outputs
        # Of each position its own channels, moved by as much as it is away from the first.
        places = list(pairwise(range(0, (size + 1) * channels, channels)))
        parts = [
            add("Slice", [found, *(add.numbers(*ends) for ends in ((at, first), (_end(at, size), last), (axis, -1)))])
            for at, (first, last) in enumerate(places if size > 1 else [])
        ]
        for number, part in enumerate(parts):
            found = add("Add", [found, part]) if number else part
    conv.outputs.clear()
    perm = [0, rank + 1, *range(1, rank + 1)]
    graph.nodes.append(gs.Node("Transpose", "", {"perm": perm}, [found], [made]))


def _end(at: int, size: int) -> int:
    """Where a Slice ends that begins at position `at` of a kernel."""
    return at + 1 - size or int(np.iinfo(np.int64).max)
