"""Which outputs of a model a loss is put on, and which loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx

from amq_onnx.errors import ModelError

LossName = Literal["softmax", "sigmoid", "squared"]
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Head:
    """A tensor of scores and the loss on it.

    tensor: the name to run the graph for; behind a Softmax or Sigmoid that was cut, its input.
    axis: the classes' dimension, for softmax. output: the model's output that it belongs to.
    why: how the loss was chosen.
    """

    tensor: str
    loss: LossName
    axis: int
    output: str
    why: str


def find_heads(model: onnx.ModelProto, loss: str = "auto") -> tuple[list[Head], dict[str, str]]:
    """The heads of `model` and, by output, why others are left out.

    loss: `softmax`, `sigmoid` or `squared` for every head, or `auto`: a Softmax or Sigmoid at the end of the
    graph is cut and its input used; [N, C] scores with C > 1 of a model without one are softmax logits;
    anything else has squared error. Raises ModelError if no output is float.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    heads: list[Head] = []
    left_out: dict[str, str] = {}
    for output in model.graph.output:
        tensor = output.type.tensor_type
        if tensor.elem_type not in _FLOATS:
            left_out[output.name] = "it is not a float tensor"
            continue
        node = producers.get(output.name)
        rank = len(tensor.shape.dim) if tensor.HasField("shape") else None
        cut = node if node is not None and node.op_type in ("Softmax", "LogSoftmax", "Sigmoid") else None
        if cut is not None:
            kind: LossName = "sigmoid" if cut.op_type == "Sigmoid" else "softmax"
            name, why = cut.input[0], f"the {cut.op_type} at the end was cut and its input used"
            axis = _softmax_axis(model, cut)
        else:
            classes = tensor.shape.dim[1] if rank == 2 else None
            many = classes is not None and not (classes.HasField("dim_value") and classes.dim_value == 1)
            kind = "softmax" if many else "squared"
            name, axis = output.name, -1
            why = "scores [N, C] without a Softmax, taken for logits" if many else "no Softmax or Sigmoid at the end"
        if loss != "auto":
            kind, why = loss, "asked for by --loss"  # type: ignore[assignment]
        heads.append(Head(name, kind, axis, output.name, why))
    if not heads:
        raise ModelError("the model has no float output to measure a loss on")
    return heads, left_out


def _softmax_axis(model: onnx.ModelProto, node: onnx.NodeProto) -> int:
    for attribute in node.attribute:
        if attribute.name == "axis":
            return int(attribute.i)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return -1 if opset >= 13 else 1
