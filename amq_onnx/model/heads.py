"""Which outputs of a model a loss is put on, and which loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from amq_onnx.errors import ModelError, UsageError

LossName = Literal["softmax", "sigmoid", "squared"]
LEFT_OUT = "left out: "
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)
# Operators that leave the numbers of their first input as they are.
_MOVES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class Head:
    """A tensor of scores and the loss on it.

    tensor: the name to run the graph for; behind a Softmax or Sigmoid that was cut, its input.
    axis: the classes' dimension, for softmax. output: the model's output that it belongs to.
    why: how the loss was chosen. weigher: the head whose probabilities weigh a squared error; the graph needs what
    `weighed` adds to it then.
    """

    tensor: str
    loss: LossName
    axis: int
    output: str
    why: str
    weigher: Head | None = None

    @property
    def story(self) -> str:
        """The loss and why, as a sensitivity table keeps it."""
        return f"{self.loss}{'' if self.weigher is None else f'*{self.weigher.output}'}: {self.why}"

    @property
    def source(self) -> str:
        """The tensor of the model itself that the loss is put on, maybe weighed."""
        return self.tensor if self.weigher is None else self.tensor.removesuffix(f"*{self.weigher.output}")


def find_heads(model: onnx.ModelProto, loss: str = "auto") -> tuple[list[Head], dict[str, str]]:
    """The heads of `model` and, by output, why others are left out.

    loss: `softmax`, `sigmoid` or `squared` for every head, or `auto`: a Softmax or Sigmoid at the end of the
    graph, perhaps written out or reshaped behind, is cut and its input used; [N, C] scores with C > 1 of a model
    without one are softmax logits, and so are [N, T, C] and [N, C, H, W] whose name ends like `logits`; anything else
    has squared error. Of maps from classes to scores (ZipMap), the scores count. `scores=sigmoid,boxes=none` names
    one for each of some outputs, `none` to leave one out; others are `auto`. `boxes=squared*scores` weighs the squared
    error of each box with the highest probability among its scores.

    Raises ModelError if no output is float or all are left out, UsageError for a loss or an output that isn't there.
    """
    graph = _Producers(model)
    asked = asked_losses(loss)
    outputs = [output.name for output in model.graph.output]
    if isinstance(asked, dict) and (missing := sorted(set(asked) - set(outputs))):
        raise UsageError(f"--loss: the model has no output '{missing[0]}': its outputs are {', '.join(outputs)}")
    heads: dict[str, Head] = {}
    left_out: dict[str, str] = {}
    weighers: dict[str, str] = {}
    for output in model.graph.output:
        scores = graph.mapped(output.name) or output
        if scores.type.tensor_type.elem_type not in _FLOATS:
            left_out[output.name] = "it is not a float tensor"
            continue
        name, kind, axis, why = graph.cut(scores.name) or _uncut(scores)
        wanted = asked.get(output.name, "auto") if isinstance(asked, dict) else asked
        wanted, _, weigher = wanted.partition("*")
        if weigher:
            weighers[output.name] = weigher
        if wanted == "none":
            left_out[output.name] = "asked for by --loss"
        elif wanted != "auto":
            kind, why = wanted, "asked for by --loss"  # type: ignore[assignment]
        heads[output.name] = Head(name, kind, axis, output.name, why)
    for name, weigher in weighers.items():
        heads[name] = _weighed_by(heads[name], heads.get(weigher), weigher)
    found = [head for name, head in heads.items() if name not in left_out]
    if not found:
        raise ModelError("the model has no float output to measure a loss on, or --loss leaves all out")
    return found, left_out


def _uncut(output: onnx.ValueInfoProto) -> tuple[str, LossName, int, str]:
    """Tensor, loss, axis and why of an output with no Softmax or Sigmoid in front: by its shape and its name."""
    tensor = output.type.tensor_type
    sizes = tensor.shape.dim if tensor.HasField("shape") else ()
    # [N, T, C] of what labels or continues texts, [N, C, H, W] of what labels pixels.
    axis = {2: 1, 3: 2, 4: 1}.get(len(sizes))
    if axis is not None and not (sizes[axis].HasField("dim_value") and sizes[axis].dim_value == 1):
        if len(sizes) == 2:
            return output.name, "softmax", -1, "scores [N, C] without a Softmax, taken for logits"
        if output.name.endswith("logits"):
            return output.name, "softmax", axis, "logits by its name"
    return output.name, "squared", -1, "no Softmax or Sigmoid at the end"


def _weighed_by(head: Head, weigher: Head | None, name: str) -> Head:
    """`head` with another one's probabilities as weights. Raises UsageError where that has none."""
    if weigher is None:
        raise UsageError(f"--loss {head.output}=squared*{name}: the model has no float output '{name}'")
    if weigher.loss == "squared":
        raise UsageError(
            f"--loss {head.output}=squared*{name}: the loss of '{name}' is squared, which has no probabilities: add "
            f"{name}=sigmoid or {name}=softmax"
        )
    return replace(head, tensor=f"{head.tensor}*{name}", weigher=weigher)


def weighed(model: onnx.ModelProto, heads: Sequence[Head]) -> onnx.ModelProto:
    """`model` with the tensors that weighed losses are put on; `model` itself where no loss is weighed.

    Before:  boxes                    scores -> Sigmoid, or what else makes probabilities
    After:   boxes ------------------------------------> Mul -> boxes*scores
             scores -> Sigmoid -> ReduceMax -> Clip -> Sqrt -> /

    The squared error of the product is that of the boxes, each weighed by the highest probability of its scores
    (where scores stay as they are). The graph is for measuring and learning: the product is no output.
    """
    wanted = [head for head in heads if head.weigher is not None]
    if not wanted:
        return model
    found = onnx.ModelProto()
    found.CopyFrom(model)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for head in wanted:
        assert head.weigher is not None
        name, axis = head.tensor, head.weigher.axis
        floor, axes = f"{name}/floor", f"{name}/axes"
        # Below it the derivative of the root would overflow before the product with that of Sigmoid vanishes.
        found.graph.initializer.append(numpy_helper.from_array(np.array(1e-12, np.float32), floor))
        softmax = head.weigher.loss == "softmax"
        likely = helper.make_node("Softmax" if softmax else "Sigmoid", [head.weigher.tensor], [f"{name}/p"])
        if softmax:
            likely.attribute.append(helper.make_attribute("axis", axis))
        highest = helper.make_node("ReduceMax", [f"{name}/p"], [f"{name}/highest"], keepdims=1)
        if opset >= 18:
            found.graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), axes))
            highest.input.append(axes)
        else:
            highest.attribute.append(helper.make_attribute("axes", [axis]))
        above = helper.make_node("Clip", [f"{name}/highest", floor], [f"{name}/above"])
        root = helper.make_node("Sqrt", [f"{name}/above"], [f"{name}/root"])
        product = helper.make_node("Mul", [head.source, f"{name}/root"], [name])
        found.graph.node.extend([likely, highest, above, root, product])
    return found


def asked_losses(text: str) -> str | dict[str, str]:
    """What --loss says: a loss for all outputs, or one by output. Raises UsageError for one that isn't there."""
    named = "=" in text
    parts = [part.rpartition("=") for part in text.split(",")] if named else [("", "", text)]
    kinds = [*get_args(LossName), "auto", *(["none"] if named else [])]
    for name, _, kind in parts:
        loss, star, weigher = kind.partition("*")
        known = loss in kinds and (not star or (named and loss == "squared" and bool(weigher)))
        if not known or (named and not name):
            raise UsageError(
                f"--loss '{text}': use auto, {', '.join(get_args(LossName))}, or one for each of some outputs, such as "
                "scores=sigmoid,boxes=squared*scores"
            )
    return {name: kind for name, _, kind in parts} if named else text


def heads_with(model: onnx.ModelProto, chosen: Mapping[str, str]) -> list[Head]:
    """The heads of `model` with losses that were chosen before.

    chosen: by the head's source, its story, as a sensitivity table has it, or by output that it is left out; others
    keep what `find_heads` gives them. Raises UsageError for a weigher that the model doesn't have.
    """
    kinds = {name: text.partition(":")[0] for name, text in chosen.items() if not text.startswith(LEFT_OUT)}
    heads = find_heads(model)[0]
    for index, head in enumerate(heads):
        for kind in get_args(LossName):
            if kinds.get(head.tensor, "").partition("*")[0] == kind:
                heads[index] = replace(head, loss=kind)
    by_output = {head.output: head for head in heads}
    found = [head for head in heads if head.tensor in kinds or head.output not in set(chosen) - set(kinds)]
    for index, head in enumerate(found):
        if weigher := kinds.get(head.tensor, "").partition("*")[2]:
            found[index] = _weighed_by(head, by_output.get(weigher), weigher)
    return found


class _Producers:
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

    def cut(self, name: str) -> tuple[str, LossName, int, str] | None:
        """Input, loss, classes' dimension and story of the Softmax or Sigmoid that makes tensor `name`, if one does."""
        node = self._behind(name, _MOVES)
        if node is None:
            return None
        match node.op_type:
            case "Softmax" | "LogSoftmax":
                axis = _attribute(node, "axis", -1 if self.opset >= 13 else 1)
                return node.input[0], "softmax", axis, f"the {node.op_type} at the end was cut and its input used"
            case "Sigmoid":
                return node.input[0], "sigmoid", -1, "the Sigmoid at the end was cut and its input used"
            case "Div":
                return self._written_out(node)
        return None

    def _written_out(self, node: onnx.NodeProto) -> tuple[str, LossName, int, str] | None:
        """Exp(x) / ReduceSum(Exp(x)), the sum perhaps brought back to the shape of x."""
        exponential = self.nodes.get(node.input[0])
        total = self._behind(node.input[1], _MOVES | {"Expand"})
        if exponential is None or exponential.op_type != "Exp" or total is None or total.op_type != "ReduceSum":
            return None
        axes = _axes(total, self.constants)
        if total.input[0] != exponential.output[0] or axes is None or len(axes) != 1:
            return None
        why = "the softmax at the end, written out in Exp and Div, was cut and its input used"
        return exponential.input[0], "softmax", axes[0], why

    def _behind(self, name: str, passed: frozenset[str]) -> onnx.NodeProto | None:
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


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)
