"""Makes a depthwise convolution of a normalization."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.fold_affine import norm_affine


class NormsToConvolutions(Pass):
    """Makes a depthwise convolution of a BatchNormalization that no convolution could take.

    Before:  x -> BatchNormalization(scale, shift, mean, var) -> y
    After:   x -> Conv(k, c, 1 x 1, a group a channel) -> y      k = scale / sqrt(var + epsilon), c = shift - mean * k

    A runtime has an integer kernel for that, and none for the other, around which codes would be dequantized and
    quantized again. Its weights lose nothing, with a scale for each. Left alone: training mode, parameters that aren't
    constants, ranks that aren't known to be 3 to 5, and what reads a graph input, which is not rounded twice.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        for node in [node for node in graph.nodes if node.op == "BatchNormalization" and is_standard(node)]:
            rank, found = len(node.inputs[0].shape or ()), norm_affine(node)
            if not node.inputs[0].inputs or not 3 <= rank <= 5 or found is None:
                continue
            factor, shift = found
            name = node.outputs[0].name
            weight = gs.Constant(f"{name}_weight", factor.reshape(-1, *[1] * (rank - 1)).astype(np.float32))
            shifts = gs.Constant(f"{name}_bias", shift.astype(np.float32))
            attributes = {"group": len(factor), "kernel_shape": [1] * (rank - 2)}
            graph.nodes.append(gs.Node("Conv", name, attributes, [node.inputs[0], weight, shifts], list(node.outputs)))
            node.outputs.clear()
            changed = True
        return changed
