"""Gives a depthwise convolution of several outputs a channel a channel for each."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.kernels import integer_convolutions
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes


class RepeatChannels(Pass):
    """Makes one group an output of a quantized Conv whose groups have one input and several outputs.

    Before:  codes [n, c, ..] -> DequantizeLinear -> Conv(group=c, outputs m c)
    After:   codes -> Gather(0 0 1 1 .. c-1 c-1, axis 1) -> DequantizeLinear -> Conv(group=m c)

    The sums are the same. onnxruntime's depthwise kernel has one output a channel; the others multiply one group after
    another, in twenty times the time for a 7x7 kernel and two outputs (FastViT), where the copies take nothing that
    counts. The indices are computed when the model is loaded. Left alone: weights that no integer kernel reads.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        add = NewNodes(graph, free_names(graph, f"{self.stem}r"))
        indices: dict[tuple[int, int], gs.Variable] = {}
        changed = False
        for conv, groups, (outputs, inputs, *_) in integer_convolutions(graph):
            if groups == 1 or inputs != 1 or outputs == groups:
                continue
            if (outputs, groups) not in indices:
                end = add.scalar(outputs, np.int32)
                indices[outputs, groups] = add.repeated(end, outputs // groups, np.int32)
            codes, *parameters = conv.inputs[0].inputs[0].inputs
            repeated = add("Gather", [codes, indices[outputs, groups]], codes.dtype, axis=1)
            conv.inputs[0] = add("DequantizeLinear", [repeated, *parameters])
            conv.attrs["group"] = outputs
            changed = True
        return changed
