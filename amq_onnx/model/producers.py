"""What makes the tensors of a graph: above all, the Softmax or Sigmoid that makes probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx
from onnx import helper, numpy_helper

LossName = Literal["softmax", "sigmoid", "squared"]
# Operators that leave the numbers of their first input as they are, and those that take some of them.
MOVES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
TAKES = frozenset({"Slice", "Split"})


@dataclass(frozen=True)
class Scores:
    """What a Softmax or Sigmoid makes probabilities of.

    tensor: its input. loss: that of such scores. axis: the classes' dimension, for softmax. why: how they were found.
    """

    tensor: str
    loss: LossName
    axis: int
    why: str


class Producers:
    """The nodes of a graph by what they make."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes = {name: node for node in model.graph.node for name in node.output}
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))

    def mapped(self, name: str) -> onnx.ValueInfoProto | None:
        """The scores [N, classes] that a ZipMap makes maps of, where it makes `name`."""
        node = self.nodes.get(name)
        if node is None or node.op_type != "ZipMap" or node.domain != "ai.onnx.ml":
            return None
        classes = sum(len(entry.ints) or len(entry.strings) for entry in node.attribute)
        return helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, [None, classes])

    def scores(self, name: str, passed: frozenset[str] = frozenset()) -> Scores | None:
        """The input of the Softmax or Sigmoid that makes tensor `name`, if one does.

        passed: operators between the two besides those that move numbers.
        """
        node = self.behind(name, MOVES | passed)
        if node is None:
            return None
        cut = f"the {node.op_type} at the end was cut and its input used"
        match node.op_type:
            case "Softmax" | "LogSoftmax":
                return Scores(node.input[0], "softmax", attribute(node, "axis", -1 if self.opset >= 13 else 1), cut)
            case "Sigmoid":
                return Scores(node.input[0], "sigmoid", -1, cut)
            case "Div":
                return self._written_out(node)
        return None

    def _written_out(self, node: onnx.NodeProto) -> Scores | None:
        """Exp(x) / ReduceSum(Exp(x)), the sum perhaps brought back to the shape of x."""
        exponential = self.nodes.get(node.input[0])
        total = self.behind(node.input[1], MOVES | {"Expand"})
        if exponential is None or exponential.op_type != "Exp" or total is None or total.op_type != "ReduceSum":
            return None
        axes = _axes(total, self.constants)
        if total.input[0] != exponential.output[0] or axes is None or len(axes) != 1:
            return None
        why = "the softmax at the end, written out in Exp and Div, was cut and its input used"
        return Scores(exponential.input[0], "softmax", axes[0], why)

    def behind(self, name: str, passed: frozenset[str] = MOVES) -> onnx.NodeProto | None:
        """The node that makes tensor `name`, up through operators that are `passed`."""
        node = self.nodes.get(name)
        while node is not None and node.op_type in passed:
            node = self.nodes.get(node.input[0])
        return node


def _axes(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> list[int] | None:
    for attribute in node.attribute:
        if attribute.name == "axes":
            return list(attribute.ints)
    if len(node.input) > 1 and node.input[1] in constants:
        return [int(axis) for axis in numpy_helper.to_array(constants[node.input[1]]).reshape(-1)]
    return None


def attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    """An integer attribute of `node`."""
    return next((int(entry.i) for entry in node.attribute if entry.name == name), default)
