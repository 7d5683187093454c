"""Lets what is to be quantized for some readers stay float for others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.names import free_names


class ReadersApart(Pass):
    """Gives some readers of a tensor an Identity of it to read.

    Before:  x -> LayerNormalization -> y -> MatMul(W), Add
    After:   x -> LayerNormalization -> y -> Add
                                        y -> Identity -> y' -> MatMul(W)

    readers: by name of the tensor, the first outputs of those readers.
    """

    def __init__(self, readers: Mapping[str, Collection[str]]) -> None:
        self.readers = readers

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        tensors = graph.tensors()
        for name, chosen in self.readers.items():
            tensor = tensors[name]
            nodes = [node for node in tensor.outputs if node.outputs[0].name in chosen]
            if not nodes:
                continue
            same = gs.Variable(next(free_names(graph, f"{name}_")), tensor.dtype, tensor.shape)
            graph.nodes.append(gs.Node("Identity", "", {}, [tensor], [same]))
            for node in nodes:
                node.inputs = [same if read is tensor else read for read in node.inputs]
            changed = True
        return changed
