"""Which outputs of a model a loss is put on, and which loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import onnx
from onnx import helper, numpy_helper

from amq_onnx.errors import ModelError, UsageError
from amq_onnx.model.producers import TAKES, LossName, Producers, Scores, attribute

LEFT_OUT = "left out: "
_ASKED = "asked for by --loss"
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16)


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
    graph, perhaps written out or reshaped behind, is cut and its input used, and so is one whose probabilities the
    output joins with other numbers, each of these parts being a head (see `_joined`); [N, C] scores with C > 1 of a
    model without one are softmax logits, and so are [N, T, C] and [N, C, H, W] whose name ends like `logits`; anything
    else has squared error. Of maps from classes to scores (ZipMap), the scores count. `scores=sigmoid,boxes=none` names
    one for each of some outputs, `none` to leave one out; others are `auto`. `boxes=squared*scores` weighs the squared
    error of each box with the highest probability among its scores.

    Raises ModelError if no output is float or all are left out, UsageError for a loss or an output that isn't there.
    """
    graph = Producers(model)
    asked = asked_losses(loss)
    outputs = [output.name for output in model.graph.output]
    if isinstance(asked, dict) and (missing := sorted(set(asked) - set(outputs))):
        raise UsageError(f"--loss: the model has no output '{missing[0]}': its outputs are {', '.join(outputs)}")
    heads: dict[str, list[Head]] = {}
    left_out: dict[str, str] = {}
    weighers: dict[str, str] = {}
    for output in model.graph.output:
        scores = graph.mapped(output.name) or output
        if scores.type.tensor_type.elem_type not in _FLOATS:
            left_out[output.name] = "it is not a float tensor"
            continue
        wanted = asked.get(output.name, "auto") if isinstance(asked, dict) else asked
        wanted, _, weigher = wanted.partition("*")
        whole = _whole(graph, output, scores)
        if weigher:
            weighers[output.name] = weigher
        if wanted == "none":
            left_out[output.name] = _ASKED
        elif wanted != "auto":
            whole = replace(whole, loss=wanted, why=_ASKED)  # type: ignore[arg-type]
        heads[output.name] = (_joined(graph, output.name) if wanted == "auto" else []) or [whole]
    for name, weigher in weighers.items():
        heads[name] = [_weighed_by(head, heads.get(weigher, []), weigher) for head in heads[name]]
    found = [head for name, parts in heads.items() if name not in left_out for head in parts]
    if not found:
        raise ModelError("the model has no float output to measure a loss on, or --loss leaves all out")
    return found, left_out


def _uncut(output: onnx.ValueInfoProto) -> Scores:
    """What is taken for the scores of an output with no Softmax or Sigmoid in front: by its shape and its name."""
    tensor = output.type.tensor_type
    sizes = tensor.shape.dim if tensor.HasField("shape") else ()
    # [N, T, C] of what labels or continues texts, [N, C, H, W] of what labels pixels.
    axis = {2: 1, 3: 2, 4: 1}.get(len(sizes))
    if axis is not None and not (sizes[axis].HasField("dim_value") and sizes[axis].dim_value == 1):
        if len(sizes) == 2:
            return Scores(output.name, "softmax", -1, "scores [N, C] without a Softmax, taken for logits")
        if output.name.endswith("logits"):
            return Scores(output.name, "softmax", axis, "logits by its name")
    return Scores(output.name, "squared", -1, "no Softmax or Sigmoid at the end")


def _weighed_by(head: Head, weighers: Sequence[Head], name: str) -> Head:
    """`head` with the probabilities of another output's heads as weights. Raises UsageError where that has none."""
    if not weighers:
        raise UsageError(f"--loss {head.output}=squared*{name}: the model has no float output '{name}'")
    likely = [weigher for weigher in weighers if weigher.loss != "squared"]
    if not likely:
        raise UsageError(
            f"--loss {head.output}=squared*{name}: the loss of '{name}' is squared, which has no probabilities: add "
            f"{name}=sigmoid or {name}=softmax"
        )
    return _with_weigher(head, likely[0])


def _with_weigher(head: Head, weigher: Head) -> Head:
    return replace(head, tensor=f"{head.tensor}*{weigher.output}", weigher=weigher)


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
    graph = Producers(model)
    by_output: dict[str, list[Head]] = {}
    for head in find_heads(model)[0]:
        by_output.setdefault(head.output, []).append(head)
    for output in model.graph.output:
        if output.name in by_output:
            whole = _whole(graph, output, graph.mapped(output.name) or output)
            if whole.source in kinds:  # the joined output was taken for one
                by_output[output.name] = [whole]
    found: list[Head] = []
    for name, heads in by_output.items():
        for index, head in enumerate(heads):
            kind, _, weigher = kinds.get(head.source, "").partition("*")
            if kind in get_args(LossName):
                heads[index] = replace(head, loss=kind)  # type: ignore[arg-type]
        left_out = name in chosen and name not in kinds
        found += [head for head in heads if head.source in kinds or not left_out]
    for index, head in enumerate(found):
        weigher = kinds.get(head.source, "").partition("*")[2]
        if weigher and head.weigher is None:
            found[index] = _weighed_by(head, by_output.get(weigher, []), weigher)
    return found


def _whole(graph: Producers, output: onnx.ValueInfoProto, scores: onnx.ValueInfoProto) -> Head:
    """The head of an output that is one thing, whose float tensor is `scores`."""
    found = graph.scores(scores.name) or _uncut(scores)
    return Head(found.tensor, found.loss, found.axis, output.name, found.why)


def _joined(graph: Producers, output: str) -> list[Head]:
    """The heads of an output in which a Concat joins probabilities and other numbers; none for one without.

    Before:  boxes [n, 4, anchors] ------------> Concat -> y [n, 4 + classes, anchors]
             logits -> Sigmoid -> scores ------> /
    Heads:   boxes (squared, weighed by the highest of its scores), logits (sigmoid)

    So detectors of the YOLO family hand out what they find. Boxes in pixels are hundreds of times as large as scores,
    so that an error of the whole would be theirs alone.
    """
    joint = graph.behind(output)
    if joint is None or joint.op_type != "Concat":
        return []
    heads = {head.tensor: head for head in _parts(graph, output, output)}
    return list(heads.values()) if any(head.loss != "squared" for head in heads.values()) else []


def _parts(graph: Producers, name: str, output: str) -> Iterator[Head]:
    """The heads of what is joined in tensor `name`, at any depth; of the tensor itself where nothing is."""
    joint = graph.behind(name)
    if joint is None or joint.op_type != "Concat":
        found = graph.scores(name, TAKES) or Scores(name, "squared", -1, "no Softmax or Sigmoid in front")
        yield Head(found.tensor, found.loss, found.axis, output, f"a part of '{output}': {found.why}")
        return
    direct = [graph.nodes[part] for part in joint.input if part in graph.nodes]
    logits = next((node.input[0] for node in direct if node.op_type == "Sigmoid"), None)
    for part in joint.input:
        for head in () if part in graph.constants else _parts(graph, part, output):
            if logits is not None and head.loss == "squared" and head.tensor == part:
                axis = attribute(joint, "axis", 1)
                head = _with_weigher(head, Head(logits, "sigmoid", axis, output, "scores beside it"))
            yield head
