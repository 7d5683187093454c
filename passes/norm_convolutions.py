"""Makes a depthwise convolution of a normalization."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.fold_affine import Channels, norm_affine, per_channel
from amq_onnx.passes.views import VIEWS

_WITH_CONSTANTS = frozenset({"Add", "Div", "Mul", "Sub"})
# What stands between a norm and the convolutions that it is there for.
_BETWEEN = frozenset({"Add", "AveragePool", "Clip", "LeakyRelu", "MaxPool", "PRelu", "Pad", "Relu", "Sub"})


class NormsToConvolutions(Pass):
    """Makes a depthwise convolution of a norm's arithmetic that no convolution could take.

    Before:  x -> BatchNormalization(scale, shift, mean, var) -> y
    After:   x -> Conv(k, c, 1 x 1, a group a channel) -> y      k = scale / sqrt(var + epsilon), c = shift - mean * k

    Before:  x -> Mul(k) -> Relu -> Conv                         k: a number for each channel, as tf2onnx writes norms
    After:   x -> Conv(k, 0, 1 x 1, a group a channel) -> Relu -> Conv

    A runtime has an integer kernel for that, and none for the other, around which codes would be dequantized and
    quantized again. Its weights lose nothing, with a scale for each. A shift behind a factor is left to FoldAffine.
    Left alone: training mode, parameters that aren't constants, ranks that aren't known to be 3 to 5, what reads a
    graph input, which is not rounded twice, and factors of what no convolution reads.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        for node in list(graph.nodes):
            source, factor, shift = _norm(node)
            rank = len(source.shape or ()) if source is not None else 0
            if source is None or not 3 <= rank <= 5:
                continue
            name = node.outputs[0].name
            weight = gs.Constant(f"{name}_weight", factor.reshape(-1, *[1] * (rank - 1)).astype(np.float32))
            shifts = gs.Constant(f"{name}_bias", shift.astype(np.float32))
            attributes = {"group": len(factor), "kernel_shape": [1] * (rank - 2)}
            graph.nodes.append(gs.Node("Conv", name, attributes, [source, weight, shifts], list(node.outputs)))
            node.outputs.clear()
            changed = True
        return changed


def _norm(node: gs.Node) -> tuple[gs.Tensor | None, Channels, Channels]:
    """What a norm reads, its factor and shift of each channel; None where `node` is none."""
    nothing = None, np.zeros(0), np.zeros(0)
    if not is_standard(node):
        return nothing
    if node.op == "BatchNormalization":
        found = norm_affine(node)
        return (node.inputs[0], *found) if found is not None and node.inputs[0].inputs else nothing
    variable = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
    if node.op != "Mul" or len(variable) != 1 or not variable[0].shape or _is_input(variable[0]):
        return nothing
    (constant,) = (tensor for tensor in node.inputs if tensor is not variable[0])
    rank, made = len(variable[0].shape), variable[0].shape[1:2]
    factor = per_channel(constant, made[0], rank) if made and isinstance(made[0], int) and made[0] > 1 else None
    if factor is None or constant.values.size == 1 or not _is_read_by_convolution(node.outputs[0]):
        return nothing
    return variable[0], factor, np.zeros_like(factor)


def _is_input(tensor: gs.Tensor) -> bool:
    """True for an input of the graph, seen through views and arithmetic with constants."""
    while tensor.inputs:
        made = tensor.inputs[0]
        variable = [read for read in made.inputs if not isinstance(read, gs.Constant)]
        if made.op not in _WITH_CONSTANTS | VIEWS or len(variable) != 1:
            return False
        tensor = variable[0]
    return True


def _is_read_by_convolution(tensor: gs.Tensor) -> bool:
    """True where a convolution reads `tensor` behind a shift, an activation, a pooling or zeros around it."""
    waiting = [tensor]
    while waiting:
        for reader in waiting.pop().outputs:
            if reader.op == "Conv":
                return True
            if (
                reader.op in _BETWEEN
                and sum(not isinstance(read, gs.Constant) for read in reader.inputs if read.name) == 1
            ):
                waiting += reader.outputs
    return False
