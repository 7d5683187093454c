"""Computes average pools of quantized tensors by kernels that are fast."""

from __future__ import annotations

import math

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.convolutions import given_pads
from amq_onnx.passes.kernels import is_between_codes
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes

_OF_CONV = frozenset({"auto_pad", "dilations", "kernel_shape", "pads", "strides"})


class AveragePoolsOnCodes(Pass):
    """Makes an AveragePool between codes a depthwise convolution, or lets it compute in float.

    Before:  codes -> DequantizeLinear -> AveragePool(k x k) -> QuantizeLinear
    After:   codes -> DequantizeLinear -> Conv(group=c, ones [c, 1, k, k] / k^2) -> QuantizeLinear
             codes -> DequantizeLinear -> Clip(lowest float) -> AveragePool(k x k) -> QuantizeLinear

    The codes are the same, but for ties. onnxruntime has a QLinearAveragePool for what stands before: it takes 2,800
    microseconds for 3x3 on 288 channels of 35x35, a QLinearConv 140, and its AveragePool of floats 640, with what they
    are dequantized and quantized by. The ones are made when the model is loaded. The second stands where windows at the
    border hold fewer elements, so that they aren't all divided by the same, and where the channels aren't known.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        free = free_names(graph, f"{self.stem}v")
        add = NewNodes(graph, free)
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in list(graph.nodes):
            if node.op != "AveragePool" or not is_standard(node) or not is_between_codes(node, outputs):
                continue
            sizes = _kernel(node)
            if sizes is None:
                node.inputs[0] = add.unbounded(node.inputs[0])
            else:
                ones = add(
                    "ConstantOfShape", [add.numbers(*sizes)], np.int8, value=gs.Constant("", np.ones(1, np.int8))
                )
                # A zero point of its own: onnxruntime changes those of weights under session.x64quantprecision.
                zero = gs.Constant(next(free), np.array(0, np.int8))
                node.inputs.append(add("DequantizeLinear", [ones, add.scalar(1 / math.prod(sizes[2:])), zero]))
                kept = {name: value for name, value in node.attrs.items() if name in _OF_CONV}
                node.op, node.attrs = "Conv", {**kept, "group": sizes[0]}
            changed = True
        return changed


def _kernel(pool: gs.Node) -> list[int] | None:
    """The shape of the weight of a depthwise convolution that does the same; None where there is none or it isn't
    known."""
    kernel = pool.attrs["kernel_shape"]
    pads = given_pads(pool, len(kernel))
    if pads is None or pool.attrs.get("ceil_mode", 0) or (any(pads) and not pool.attrs.get("count_include_pad", 0)):
        return None
    shape = pool.outputs[0].shape or pool.inputs[0].shape
    channels = shape[1] if shape else None
    return [channels, 1, *kernel] if isinstance(channels, int) else None
