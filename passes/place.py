"""Moves dequantization behind operators that only move values."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.kernels import CODE_BOUNDS

# Their outputs hold only values of their first input, and they are defined on 8-bit integers (opset 13).
_CARRIERS = frozenset(
    {"Flatten", "Gather", "Identity", "MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)


class PlaceOnCodes(Pass):
    """Lets operators that only move values work on codes.

    Before:  codes -> DequantizeLinear -> x -> Slice -> y -> Conv
    After:   codes -> Slice -> DequantizeLinear -> y -> Conv

    Values and order stay the same bit for bit, and the operator moves a quarter of the bytes; runtimes find
    DequantizeLinear where they look for it, in front of the operator with an integer kernel. So for Shape. A Pad that
    fills with 0 fills with the zero point instead. Scales along an axis follow it through a Transpose, and through a
    Gather of rows when they belong to columns, as an embedding's do. Left alone: other operators behind per-axis
    encodings, other pads, a Resize that computes between values or names its axes, graph outputs, and without `weights`
    what comes from a constant: not every operator moves every integer type; and operators of a subgraph, which see the
    float tensor from within.
    """

    def __init__(self, weights: bool = True) -> None:
        self.weights = weights

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        outputs = {id(tensor) for tensor in graph.outputs}
        own = {id(node) for node in graph.nodes}
        waiting = [node for node in graph.nodes if node.op == "DequantizeLinear"]
        while waiting:
            dequantize = waiting.pop()
            codes, *parameters = dequantize.inputs
            if not isinstance(parameters[0], gs.Constant) or not dequantize.outputs:
                continue
            if not self.weights and _of_a_constant(codes):
                continue
            for carrier in list(dequantize.outputs[0].outputs):
                if carrier.op == "Shape" and is_standard(carrier) and id(carrier) in own:
                    carrier.inputs[0] = codes
                    changed = True
                    continue
                attributes = _attributes_behind(carrier, dequantize)
                if (
                    id(carrier) not in own
                    or attributes is None
                    or not is_carrier(carrier)
                    or any(id(out) in outputs for out in carrier.outputs)
                ):
                    continue
                carrier.inputs[0] = codes
                if carrier.op == "Pad":
                    _fill_with_zero_point(carrier, parameters)
                reals = list(carrier.outputs)
                carrier.outputs = []
                for real in reals:
                    moved = gs.Variable(f"{dequantize.outputs[0].name}{len(graph.nodes)}", codes.dtype)
                    carrier.outputs.append(moved)
                    behind = gs.Node("DequantizeLinear", "", dict(attributes), [moved, *parameters], [real])
                    graph.nodes.append(behind)
                    waiting.append(behind)
                changed = True
        return changed


def is_carrier(node: gs.Node) -> bool:
    """True for an operator whose outputs hold no other numbers than its first input, or zeros besides."""
    if not is_standard(node) or (len(node.outputs) != 1 and node.op != "Split"):
        return False
    if node.op == "Pad":
        fill = node.inputs[2] if len(node.inputs) > 2 and node.inputs[2].name else None
        constant = node.attrs.get("mode", "constant") == "constant"
        zero = fill is None or (isinstance(fill, gs.Constant) and not np.any(fill.values))
        return not constant or zero
    if node.op == "Resize":
        cropped = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
        return node.attrs.get("mode", "nearest") == "nearest" and not cropped and "axes" not in node.attrs
    return node.op in _CARRIERS


def _of_a_constant(codes: gs.Tensor) -> bool:
    while codes.inputs and codes.inputs[0].op in CODE_BOUNDS | {"QuantizeLinear"}:
        codes = codes.inputs[0].inputs[0]
    return isinstance(codes, gs.Constant)


def _attributes_behind(carrier: gs.Node, dequantize: gs.Node) -> dict[str, int] | None:
    """Attributes of a DequantizeLinear that stands behind `carrier` instead; None where it can't."""
    if dequantize.inputs[1].values.ndim == 0:
        return {}
    axis, shape = int(dequantize.attrs.get("axis", 1)), dequantize.outputs[0].shape
    if shape is None:
        return None
    if carrier.op == "Transpose":
        perm = list(carrier.attrs.get("perm", range(len(shape))[::-1]))
        return {"axis": perm.index(axis % len(shape))}
    if carrier.op == "Gather" and carrier.attrs.get("axis", 0) == 0 and len(shape) > 1 and axis == len(shape) - 1:
        return {"axis": -1}
    return None


def _fill_with_zero_point(pad: gs.Node, parameters: list[gs.Tensor]) -> None:
    if pad.attrs.get("mode", "constant") != "constant":
        return
    while len(pad.inputs) < 3:
        pad.inputs.append(gs.Variable.empty())
    pad.inputs[2] = parameters[1]
