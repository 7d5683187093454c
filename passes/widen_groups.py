"""Makes few wide groups of the many narrow ones of a convolution on integer kernels."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.kernels import integer_convolutions
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes

# Channels of a group, as many as onnxruntime's integer matrix products need to be worth their call, and at most.
_WIDE, _WIDEST = 32, 192


class WidenGroups(Pass):
    """Joins groups of a quantized Conv, with zeros for the weights between channels of different ones.

    Before:  codes [o, c, ..] (constant) -> DequantizeLinear -> Conv(group=g)
    After:   codes -> Pad -> Reshape -> Pad -> Reshape -> Slice -> Reshape [o, r c, ..] -> DequantizeLinear
                   -> Conv(group=g / r)

    The sums are the same. onnxruntime copies and multiplies one group after another: with 4 channels each, a
    QLinearConv takes five times as long as the float Conv, with 32 to 64 half as long (ResNeXt, RegNet;
    benchmarks/README.md). It computes the zeros when it loads the model, so that the file has none. They come from
    two paddings: each output channel's c inputs get room for r c; then all rows of a group get c more behind them,
    which in one long row moves the group behind it by as much.

    Left alone: groups of 32 channels, those of one (there are kernels for these), weights that others read too.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        add = NewNodes(graph, free_names(graph, f"{self.stem}g"))
        constant = add.numbers
        changed = False
        for conv, groups, (outputs, inputs, *kernel) in integer_convolutions(graph):
            joined = _joined(groups, inputs, outputs // groups)
            if joined == 1 or len(conv.inputs[1].outputs) != 1:
                continue
            dequantize = conv.inputs[1].inputs[0]
            codes = dequantize.inputs[0]
            row = joined * inputs * math.prod(kernel)
            steps = [
                ("Pad", constant(*[0] * (len(kernel) + 3), (joined - 1) * inputs, *[0] * len(kernel))),
                ("Reshape", constant(groups // joined, joined, -1)),
                ("Pad", constant(0, 0, 0, 0, 0, row // joined)),
                ("Reshape", constant(groups // joined, -1)),
                ("Slice", constant(0), constant(outputs * row // (groups // joined)), constant(1)),
                ("Reshape", constant(outputs, joined * inputs, *kernel)),
            ]
            for operator, *parameters in steps:
                codes = add(operator, [codes, *parameters], codes.dtype)
            dequantize.inputs[0] = codes
            conv.inputs[1].shape = [outputs, joined * inputs, *kernel]
            conv.attrs["group"] = groups // joined
            changed = True
        return changed


def _joined(groups: int, inputs: int, outputs: int) -> int:
    """How many groups of so many channels become one."""
    if groups == 1 or inputs == outputs == 1:
        return 1
    width = math.sqrt(inputs * outputs)
    fitting = [joined for joined in range(1, groups + 1) if groups % joined == 0 and joined * width <= _WIDEST]
    return next((joined for joined in fitting if joined * width >= _WIDE), fitting[-1] if fitting else 1)
