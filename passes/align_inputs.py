"""Gives a convolution of one to three channels as many as onnxruntime's integer kernel takes."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.channels import MoreChannels
from amq_onnx.passes.kernels import integer_convolutions
from amq_onnx.passes.names import free_names

# What MlasConvSym asks for: input channels in fours, sixteen outputs.
_INPUTS, _OUTPUTS = 4, 16
# Positions of a kernel, for each of its channels, up to which that kernel is faster with the channels added.
_POSITIONS = 17


class AlignInputs(Pass):
    """Lets a quantized Conv of one to three channels, as networks begin with, read four.

    Before:  codes [n, 3, ..] -> DequantizeLinear -> Conv
             weight's codes [o, 3, ..] (constant) -> DequantizeLinear -> /
    After:   codes -> Pad [n, 4, ..] -> DequantizeLinear -> Conv
             weight's codes -> Pad [o, 4, ..] -> DequantizeLinear -> /

    The sums are the same, since the weights of the added channel are 0; the file has none of them.
    Where channels don't come in fours, onnxruntime's QLinearConv writes every position's inputs out and multiplies
    matrices (MlasConvSymPackWSize in its source); with four the layer takes .4 to .8 of the time (docs/packing.md).
    Left alone: kernels so large that matrices are faster (a ViT's patches), fewer than 16 outputs.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        more = MoreChannels(graph, free_names(graph, f"{self.stem}c"))
        changed = False
        for conv, groups, (outputs, inputs, *kernel) in integer_convolutions(graph):
            if groups > 1 or inputs >= _INPUTS or outputs < _OUTPUTS:
                continue
            if math.prod(kernel) > _POSITIONS * inputs:
                continue
            more.of_data(conv, _INPUTS - inputs)
            more.of_weight(conv, 1, _INPUTS - inputs)
            changed = True
        return changed
