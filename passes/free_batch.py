"""Takes the size of a fixed batch out of the shapes that a graph holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.names import free_names


class FreeBatch(Pass):
    """Lets each Reshape take any number of samples, where the inputs of the graph fix it.

    Before:  x [1, 12, 64] -> Reshape([1, 768]) -> y         x [1, 12, 9, 64] -> Reshape([12, 9, 64]) -> y
    After:   x [1, 12, 64] -> Reshape([0, 768]) -> y         x [1, 12, 9, 64] -> Reshape([-1, 9, 64]) -> y

    0 stands for the size of x's dimension, -1 for what is left; exporters write the numbers of the batch that they saw.
    For that batch nothing changes. Left alone: shapes that are computed, and those that start with another number than
    x and have a -1 already.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        if not any(isinstance(tensor.shape[0], int) for tensor in graph.inputs if tensor.shape):
            return False
        names = free_names(graph, "free_batch")
        shapes: dict[tuple[int, ...], gs.Constant] = {}
        changed = False
        for node in graph.nodes:
            if node.op != "Reshape" or not is_standard(node) or not isinstance(node.inputs[1], gs.Constant):
                continue
            sizes = [int(size) for size in np.ravel(node.inputs[1].values)]
            free = None if node.attrs.get("allowzero", 0) else _free(sizes, node.inputs[0].shape)
            if free is not None:
                if free not in shapes:
                    shapes[free] = gs.Constant(next(names), np.array(free, np.int64))
                node.inputs[1] = shapes[free]
                changed = True
        return changed


def _free(sizes: Sequence[int], shape: Sequence[int | str] | None) -> tuple[int, ...] | None:
    """The same shape for any number of samples; None where it is one already, or can't be."""
    if not sizes or sizes[0] < 1:
        return None
    if shape and shape[0] == sizes[0]:
        return (0, *sizes[1:])
    return (-1, *sizes[1:]) if min(sizes) > 0 else None
