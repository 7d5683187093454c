"""Makes a depthwise convolution of a normalization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.affine import ARITHMETIC
from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.fold_affine import Channels, norm_affine, per_channel
from amq_onnx.passes.views import VIEWS

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
            norm = _norm(node) if is_standard(node) else None
            if norm is None or not 3 <= len(norm.source.shape or ()) <= 5:
                continue
            name, rank = node.outputs[0].name, len(norm.source.shape)
            weight = gs.Constant(f"{name}_weight", norm.factor.reshape(-1, *[1] * (rank - 1)).astype(np.float32))
            shifts = gs.Constant(f"{name}_bias", norm.shift.astype(np.float32))
            attributes = {"group": len(norm.factor), "kernel_shape": [1] * (rank - 2)}
            graph.nodes.append(gs.Node("Conv", name, attributes, [norm.source, weight, shifts], list(node.outputs)))
            node.outputs.clear()
            changed = True
        return changed


@dataclass(frozen=True, eq=False)
class _Norm:
    """What a norm reads, and its factor and shift of each channel."""

    source: gs.Tensor
    factor: Channels
    shift: Channels


def _norm(node: gs.Node) -> _Norm | None:
    """The norm that `node` is, None where it is none."""
    if node.op == "BatchNormalization":
        found = norm_affine(node)
        return _Norm(node.inputs[0], *found) if found is not None and node.inputs[0].inputs else None
    source = _only_variable(node)
    if node.op != "Mul" or source is None or len(source.shape or ()) < 2 or _is_input(source):
        return None
    (constant,) = (tensor for tensor in node.inputs if tensor is not source)
    channels = source.shape[1]
    if not isinstance(channels, int) or constant.values.size == 1:
        return None
    factor = per_channel(constant, channels, len(source.shape))
    if factor is None or not _is_read_by_convolution(node.outputs[0]):
        return None
    return _Norm(source, factor, np.zeros_like(factor))


def _only_variable(node: gs.Node) -> gs.Tensor | None:
    """The one input of `node` that isn't constant, None where there are others."""
    variable = [tensor for tensor in node.inputs if tensor.name and not isinstance(tensor, gs.Constant)]
    return variable[0] if len(variable) == 1 else None


def _is_input(tensor: gs.Tensor) -> bool:
    """True for an input of the graph, seen through views and arithmetic with constants."""
    while tensor.inputs:
        made = tensor.inputs[0]
        source = _only_variable(made)
        if made.op not in ARITHMETIC | VIEWS or source is None:
            return False
        tensor = source
    return True


def _is_read_by_convolution(tensor: gs.Tensor) -> bool:
    """True where a convolution reads `tensor` behind a shift, an activation, a pooling or zeros around it."""
    return any(
        reader.op == "Conv"
        or (reader.op in _BETWEEN and _only_variable(reader) is not None and _is_read_by_convolution(reader.outputs[0]))
        for reader in tensor.outputs
    )
