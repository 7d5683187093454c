"""Makes a convolution of a transposed one, whose outputs are then put in their places."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.convolutions import bias, changeable
from amq_onnx.passes.kernels import behind_absorbed
from amq_onnx.passes.names import free_names
from amq_onnx.passes.numbers import Numbers


class TransposedConvolutions(Pass):
    """Makes a Conv of a ConvTranspose whose kernel is its stride, or several times that.

    Before:  x [n, c, h, w] -> ConvTranspose(W [c, o, k s, k s], b, strides s) -> Relu -> y
    After:   x -> Conv(W' [s s o, c, k, k], b repeated, pads k - 1) -> Relu -> Transpose, [n, h', w', s s o]
               -> Reshape [n, h', w', s, s o] -> Transpose [n, h', s, w', s o] -> Reshape [n, s h', s w', o]
               -> Slice, of what ConvTranspose pads away -> Transpose -> y [n, o, ..]

    Of an output's place in its s x s outputs depends which of the weights it is computed with, so that each place is a
    channel of its own: W'[(a, b, o), c, i, j] = W[c, o, a + s (k - 1 - i), b + s (k - 1 - j)], with no product more.
    onnxruntime has an integer kernel for that, and none for a ConvTranspose. Its integer convolutions are
    channels-last, so that places are put in order without touching single channels: with 128 inputs, 64 outputs, k = 1,
    s = 2 and 28 x 28 places, all takes 50 microseconds more than the convolutions around it, its ConvTranspose 400. So
    in one dimension and in three. Left alone: groups, dilations, what pads its output, weights that aren't constants or
    have other readers, kernels of other sizes, in which zeros would be stored, and what makes an output of the graph.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in list(graph.nodes):
            if node.op != "ConvTranspose" or not is_standard(node) or not changeable(node):
                continue
            made = behind_absorbed(node.outputs[0])
            if id(made) in outputs or id(node.outputs[0]) in outputs or _times(node) is None:
                continue
            self._replace(graph, node, made)
            changed = True
        return changed

    @staticmethod
    def _replace(graph: gs.Graph, node: gs.Node, made: gs.Tensor) -> None:
        strides, times = node.attrs["strides"], _times(node)
        assert times is not None
        free = free_names(graph, f"{node.inputs[1].name}_")
        numbers = Numbers(free)
        weight = _weight(node.inputs[1].values, strides, times)
        parameters = [gs.Constant(node.inputs[1].name, weight)]
        if len(node.inputs) > 2:
            shifts = np.tile(bias(node).astype(weight.dtype), math.prod(strides))
            parameters.append(gs.Constant(node.inputs[2].name, shifts))
        pads = _pads(node)
        node.op, node.attrs = "Conv", {"kernel_shape": times, "pads": [each - 1 for each in times] * 2}
        node.inputs = [node.inputs[0], *parameters]

        def add(operator: str, *inputs: gs.Tensor, **attributes: object) -> gs.Variable:
            output = gs.Variable(next(free), np.int64 if operator in ("Div", "Mul", "Shape") else np.float32)
            graph.nodes.append(gs.Node(operator, "", attributes, list(inputs), [output]))
            return output

        between = node.outputs[0]
        while between is not made:
            between.shape = None
            between = between.outputs[0].outputs[0]
        inside = gs.Variable(next(free), np.float32)
        made.inputs[0].outputs = [inside]
        rank, each = len(strides), len(weight) // math.prod(strides)
        places = add("Transpose", inside, perm=[0, *range(2, rank + 2), 1])
        split = [*[0] * rank, -1, *strides[:-1], strides[-1] * each]
        apart = add("Reshape", places, numbers(*split))
        if rank > 1:
            pairs = [place for number in range(1, rank) for place in (number, rank + number)]
            apart = add("Transpose", apart, perm=[0, *pairs, rank, 2 * rank])
        sizes = add("Mul", add("Shape", places), numbers(1, *strides, 1))
        sizes = add("Div", sizes, numbers(*[1] * (rank + 1), math.prod(strides)))
        joined = add("Reshape", apart, sizes)
        if any(pads):
            ends = [-pad if pad else np.iinfo(np.int64).max for pad in pads[rank:]]
            joined = add("Slice", joined, numbers(*pads[:rank]), numbers(*ends), numbers(*range(1, rank + 1)))
        graph.nodes.append(gs.Node("Transpose", "", {"perm": [0, rank + 1, *range(1, rank + 1)]}, [joined], [made]))


def _times(node: gs.Node) -> list[int] | None:
    """How many times its stride the kernel of a ConvTranspose is, by dimension; None where no Conv does the same."""
    shape, attributes = node.inputs[1].shape, node.attrs
    strides, kernel = attributes.get("strides", ()), shape[2:]
    if len(strides) != len(kernel) or any(size % stride for size, stride in zip(kernel, strides, strict=True)):
        return None
    if attributes.get("group", 1) != 1 or max(attributes.get("dilations", [1])) > 1 or max(strides) == 1:
        return None
    if any(attributes.get("output_padding", ())) or "output_shape" in attributes or min(_pads(node)) < 0:
        return None
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    return [size // stride for size, stride in zip(kernel, strides, strict=True)]


def _pads(node: gs.Node) -> list[int]:
    return list(node.attrs.get("pads", [0] * 2 * len(node.inputs[1].shape[2:])))


def _weight(values: np.ndarray, strides: Sequence[int], times: Sequence[int]) -> np.ndarray:
    """[c, o, k s, ..] as [s .. o, c, k, ..]."""
    rank = len(strides)
    apart = values.reshape(*values.shape[:2], *(size for pair in zip(times, strides, strict=True) for size in pair))
    apart = np.flip(apart, axis=tuple(range(2, 2 + 2 * rank, 2)))
    order = [*range(3, 3 + 2 * rank, 2), 1, 0, *range(2, 2 + 2 * rank, 2)]
    return np.ascontiguousarray(apart.transpose(order)).reshape(-1, values.shape[0], *times)
