"""Which outputs hold several things, joined along one dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from amq_onnx.model.producers import TAKES, Producers, attribute
from amq_onnx.skeleton import inferred

# Operators that leave the dimension in which things are joined where it is, if its size and those in front stay.
_RESHAPED = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Joint:
    """A tensor that holds several things: axis is the dimension along which, sizes how much of it each of them takes.

    Boxes and scores, [n, 4 + classes, anchors], are joined along axis 1 with sizes 4 and `classes`.
    """

    axis: int
    sizes: tuple[int, ...]

    def parts(self, name: str, array: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The things that `array` holds, as name[0], name[1], ...; the array itself where it has another size."""
        if self.axis >= array.ndim or array.shape[self.axis] != sum(self.sizes):
            return {name: array}
        parts = np.split(array, np.cumsum(self.sizes)[:-1], self.axis)
        return {f"{name}[{number}]": part for number, part in enumerate(parts)}


def apart(outputs: Mapping[str, NDArray[Any]], joints: Mapping[str, Joint]) -> dict[str, NDArray[Any]]:
    """`outputs` with the parts of each that has a joint in its place."""
    found: dict[str, NDArray[Any]] = {}
    for name, array in outputs.items():
        found |= joints[name].parts(name, array) if name in joints else {name: array}
    return found


def joined_outputs(model: onnx.ModelProto) -> dict[str, Joint]:
    """Of each output in which a Concat joins probabilities and other numbers (see heads.py), how.

    What joins several levels, each of the same things, holds these things. Left out are outputs whose parts have sizes
    that shape inference doesn't know.
    """
    graph = Producers(model)
    makers = (graph.behind(output.name) for output in model.graph.output)
    if not any(maker is not None and maker.op_type == "Concat" for maker in makers):
        return {}
    shapes = _Shapes(inferred(model))
    found = {output.name: _joint(graph, shapes, output.name) for output in model.graph.output}
    return {name: joint for name, joint in found.items() if joint is not None}


class _Shapes:
    """Sizes of tensors, as far as shape inference knows them."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._values = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}

    def rank(self, name: str) -> int:
        """How many dimensions tensor `name` has; 0 where that isn't known."""
        return len(self._sizes(name))

    def size(self, name: str, axis: int) -> int | None:
        """The size of tensor `name` along `axis`; None where it isn't known, or there is no such axis."""
        sizes = self._sizes(name)
        return sizes[axis].dim_value if axis < len(sizes) and sizes[axis].HasField("dim_value") else None

    def _sizes(self, name: str) -> Sequence[onnx.TensorShapeProto.Dimension]:
        value = self._values.get(name)
        return value.type.tensor_type.shape.dim if value is not None else ()


def _joint(graph: Producers, shapes: _Shapes, name: str) -> Joint | None:
    """How tensor `name` is joined, in its own layout."""
    node = graph.nodes.get(name)
    if node is None:
        return None
    if node.op_type == "Concat":
        return _of_concat(graph, shapes, node)
    if node.op_type not in {"Cast", "Identity", "Transpose", *_RESHAPED}:
        return None
    inside = _joint(graph, shapes, node.input[0])
    if inside is None:
        return None
    if node.op_type == "Transpose":
        turned = list(range(shapes.rank(node.input[0])))[::-1]
        order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), turned)
        return Joint(order.index(inside.axis), inside.sizes) if inside.axis in order else None
    kept = node.op_type not in _RESHAPED or shapes.size(name, inside.axis) == sum(inside.sizes)
    return inside if kept else None


def _of_concat(graph: Producers, shapes: _Shapes, node: onnx.NodeProto) -> Joint | None:
    rank = shapes.rank(node.output[0])
    if not rank:
        return None
    axis = attribute(node, "axis", 1) % rank
    if any(graph.scores(part, TAKES) is not None for part in node.input):
        sizes = [shapes.size(part, axis) for part in node.input]
        known = tuple(size for size in sizes if size is not None)
        return Joint(axis, known) if len(known) == len(sizes) > 1 else None
    parts = {_joint(graph, shapes, part) for part in node.input}
    joint = parts.pop() if len(parts) == 1 else None
    return joint if joint is not None and joint.axis != axis else None
