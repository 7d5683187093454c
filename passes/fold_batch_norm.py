"""Folds BatchNormalization into the convolution before it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass


class FoldBatchNorm(Pass):
    """Folds an inference BatchNormalization into the Conv that alone feeds it.

    Before:  x -> Conv(W, b) -> y -> BatchNormalization(scale, shift, mean, var) -> z
    After:   x -> Conv(W * k, (b - mean) * k + shift) -> z,   k = scale / sqrt(var + epsilon) per channel

    Left alone: a Conv whose output has other readers, weights that aren't constants or have other readers,
    training mode. Computed in float64, stored in the type of W.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        outputs = {id(tensor) for tensor in graph.outputs}
        for norm in list(graph.nodes):
            if norm.op != "BatchNormalization" or norm.attrs.get("training_mode", 0):
                continue
            middle = norm.inputs[0]
            if len(middle.inputs) != 1 or len(middle.outputs) != 1 or id(middle) in outputs:
                continue
            conv = middle.inputs[0]
            if conv.op != "Conv" or not _foldable(conv) or not _constants(norm.inputs[1:5]):
                continue
            self._fold(conv, norm)
            changed = True
        return changed

    @staticmethod
    def _fold(conv: gs.Node, norm: gs.Node) -> None:
        scale, shift, mean, variance = (tensor.values.astype(np.float64) for tensor in norm.inputs[1:5])
        factor = scale / np.sqrt(variance + norm.attrs.get("epsilon", 1e-5))
        weight = conv.inputs[1]
        values = weight.values
        bias = conv.inputs[2].values.astype(np.float64) if len(conv.inputs) > 2 else 0.0
        folded = values.astype(np.float64) * factor.reshape(-1, *[1] * (values.ndim - 1))
        weight.values = folded.astype(values.dtype)
        # The bias takes the weight's name as its stem: the normalization's own names say nothing of the Conv.
        name = conv.inputs[2].name if len(conv.inputs) > 2 else f"{weight.name}.bias"
        new_bias = gs.Constant(name, ((bias - mean) * factor + shift).astype(values.dtype))
        conv.inputs = [conv.inputs[0], weight, new_bias]
        output = norm.outputs[0]
        norm.outputs.clear()
        conv.outputs = [output]


def _foldable(conv: gs.Node) -> bool:
    parameters = conv.inputs[1:]
    return _constants(parameters) and all(len(tensor.outputs) == 1 for tensor in parameters)


def _constants(tensors: list[gs.Tensor]) -> bool:
    return all(isinstance(tensor, gs.Constant) for tensor in tensors)
