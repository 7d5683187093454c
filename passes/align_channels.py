"""Gives a convolution of one to three channels as many as onnxruntime's integer kernel takes."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.gather_channels import gather_channels
from amq_onnx.passes.kernels import integer_convolutions
from amq_onnx.passes.names import free_names

# What MlasConvSym asks for: input channels in fours, sixteen outputs.
_INPUTS, _OUTPUTS = 4, 16
# Positions of a kernel, for each of its channels, up to which that kernel is faster with the channels added.
_POSITIONS = 17


class AlignChannels(Pass):
    """Lets a quantized Conv of one to three channels, as networks begin with, read four.

    Before:  codes [n, 3, ..] -> DequantizeLinear -> Conv
             weight's codes [o, 3, ..] (constant) -> DequantizeLinear -> /
    After:   codes -> Gather(0 1 2 0, axis 1) -> DequantizeLinear -> Conv
             weight's codes -> Pad [o, 4, ..] -> DequantizeLinear -> /

    The sums are the same: the added channel is one of the others, its weights are 0, and the file has none of them.
    Where channels don't come in fours, onnxruntime's QLinearConv writes every position's inputs out and multiplies
    matrices (MlasConvSymPackWSize in its source); with four the layer takes .4 to .8 of the time (docs/packing.md).
    Left alone: kernels so large that matrices are faster (a ViT's patches), fewer than 16 outputs, weights that others
    read too.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        free = free_names(graph, f"{self.stem}c")
        changed = False
        for conv, groups, (outputs, inputs, *kernel) in integer_convolutions(graph):
            if groups > 1 or inputs >= _INPUTS or outputs < _OUTPUTS or len(conv.inputs[1].outputs) != 1:
                continue
            if math.prod(kernel) > _POSITIONS * inputs:
                continue
            added = _INPUTS - inputs
            channels = np.array([*range(inputs), *[0] * added], np.int64)
            gather_channels(graph, conv, gs.Constant(next(free), channels), free)
            dequantize = conv.inputs[1].inputs[0]
            ends = np.array([0] * (len(kernel) + 3) + [added] + [0] * len(kernel), np.int64)
            padded = gs.Variable(next(free), dequantize.inputs[0].dtype)
            graph.nodes.append(gs.Node("Pad", "", {}, [dequantize.inputs[0], gs.Constant(next(free), ends)], [padded]))
            dequantize.inputs[0] = padded
            conv.inputs[1].shape = [outputs, _INPUTS, *kernel]
            changed = True
        return changed
