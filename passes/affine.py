"""Arithmetic with one number: what it multiplies by and adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import is_standard

ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})
# Shapes of constants that are the same number to whatever they are computed with.
NUMBER_SHAPES: tuple[Sequence[int], ...] = ((), (1,), [], [1])


@dataclass(frozen=True, eq=False)
class Affine:
    """factor * source + shift. nodes: that compute it, the last first."""

    source: gs.Tensor
    factor: float = 1.0
    shift: float = 0.0
    nodes: tuple[gs.Node, ...] = ()


def affine(tensor: gs.Tensor) -> Affine:
    """What Add, Sub, Mul and Div by one number, one after another, compute `tensor` from, with a factor above 0."""
    found = Affine(tensor)
    while (step := affine_step(found.source.inputs[0] if found.source.inputs else None)) is not None:
        shift = found.factor * step.shift + found.shift
        found = Affine(step.source, found.factor * step.factor, shift, found.nodes + step.nodes)
    return found


def affine_step(node: gs.Node | None) -> Affine | None:
    """`node`, where it is an Add, Sub, Mul or Div by one number, with a factor above 0, that stands by itself.

    The last factor of a GELU in parts doesn't: without it onnxruntime runs them one by one, twice the time of its Gelu.
    """
    if node is None or node.op not in ARITHMETIC or not is_standard(node) or _ends_gelu(node):
        return None
    source, number = with_number(node)
    if source is None or number is None or not np.isfinite(number):
        return None
    if node.op in ("Add", "Sub"):
        if node.op == "Sub" and node.inputs[0] is not source:
            return None
        return Affine(source, 1.0, number if node.op == "Add" else -number, (node,))
    if number <= 0 or (node.op == "Div" and node.inputs[0] is not source):
        return None
    return Affine(source, number if node.op == "Mul" else 1 / number, 0.0, (node,))


def _ends_gelu(node: gs.Node) -> bool:
    """True for the last of x -> Div(sqrt 2) -> Erf -> Add(1) -> Mul(x) -> Mul(1/2), a GELU before opset 20."""
    if node.op != "Mul" or len(node.inputs) != 2 or with_number(node)[1] != 0.5:
        return False
    product = next((made for made in _makers(node) if made.op == "Mul"), None)
    sums = [made for made in _makers(product) if made.op == "Add"] if product is not None else []
    return any(with_number(each)[1] == 1.0 and any(made.op == "Erf" for made in _makers(each)) for each in sums)


def _makers(node: gs.Node) -> list[gs.Node]:
    """The nodes that make the inputs of `node`."""
    return [made for tensor in node.inputs for made in tensor.inputs]


def with_number(node: gs.Node) -> tuple[gs.Tensor | None, float | None]:
    """The tensor and the number that a node of two inputs computes with, None where it isn't of such two."""
    if len(node.inputs) == 2:
        for tensor, other in (node.inputs, node.inputs[::-1]):
            if not isinstance(tensor, gs.Constant) and (number := number_of(other)) is not None:
                return tensor, number
    return None, None


def number_of(tensor: gs.Tensor) -> float | None:
    """The value of a float constant of one number that adds no dimension to what it is computed with."""
    if not isinstance(tensor, gs.Constant) or tensor.dtype != np.float32 or tensor.shape not in NUMBER_SHAPES:
        return None
    return float(tensor.values.reshape(()))
