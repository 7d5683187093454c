"""Writes a PRelu of one slope as the operator that integer kernels know."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.prelu_codes import has_constant_slopes


class UniformPRelu(Pass):
    """Makes a PRelu whose slopes are all the same, as PyTorch's default is, a LeakyRelu.

    Before:  x -> PRelu(slopes) -> y
    After:   x -> LeakyRelu(alpha) -> y

    The numbers are the same. onnxruntime has an integer kernel for LeakyRelu alone, and a faster float one as well.
    Left alone: slopes that differ or aren't constant, and such as have more dimensions than x.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        for node in graph.nodes:
            if not has_constant_slopes(node) or not node.inputs[1].values.size:
                continue
            slopes = node.inputs[1]
            alpha = slopes.values.reshape(-1)[0]
            if not (slopes.values == alpha).all() or not _fits(node.inputs[0], slopes):
                continue
            node.op, node.attrs, node.inputs = "LeakyRelu", {"alpha": float(alpha)}, [node.inputs[0]]
            changed = True
        return changed


def _fits(data: gs.Tensor, slopes: gs.Constant) -> bool:
    """Whether `slopes` have no dimension that `data` lacks; one number has none."""
    return slopes.values.ndim == 0 or (data.shape is not None and len(data.shape) >= slopes.values.ndim)
