"""Lets what a Conv makes be codes where it is an output of the graph."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard, replace_readers
from amq_onnx.passes.kernels import maker
from amq_onnx.passes.names import free_names


class OutputsApart(Pass):
    """Puts an Identity in front of each output of the graph that a Conv makes, or a Relu or Clip behind one.

    Before:  x -> Conv -> y (output)
    After:   x -> Conv -> y' -> Identity -> y (output)

    Quantizers stand behind tensors that are no outputs, which keep their float values (InsertQDQ).
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        for output in graph.outputs:
            made = maker(output)
            if made is None or made.op != "Conv" or not is_standard(made):
                continue
            inner = gs.Variable(next(free_names(graph, f"{output.name}_")), output.dtype, output.shape)
            last = output.inputs[0]
            last.outputs = [inner if tensor is output else tensor for tensor in last.outputs]
            replace_readers(output, inner)
            graph.nodes.append(gs.Node("Identity", "", {}, [inner], [output]))
            changed = True
        return changed
