"""Finds the weights of a graph: which constants they are and where their output channels lie."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import is_standard

# Where each operator reads weights. Gather reads an embedding: a table whose rows it picks.
OPERATORS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "GRU": (1, 2),
    "Gather": (0,),
    "Gemm": (0, 1),
    "LSTM": (1, 2),
    "MatMul": (0, 1),
    "RNN": (1, 2),
}


@dataclass(frozen=True, eq=False)
class FoundWeight:
    """A constant, the layers that read it, the tensors that they read it as (itself, or itself transposed), and the
    dimension of its output channels (None where they disagree and all take one scale).
    """

    tensor: gs.Constant
    readers: list[gs.Node]
    reads: list[gs.Tensor]
    axis: int | None


@dataclass(frozen=True, eq=False)
class _Read:
    node: gs.Node
    position: int
    tensor: gs.Tensor
    source: Callable[[int], int | None]

    @property
    def axis(self) -> int | None:
        """The dimension of the constant that holds the node's output channels."""
        axis = _channel_axis(self.node, self.position, len(self.tensor.shape or ()))
        return None if axis is None else self.source(axis)


def find_weights(graph: gs.Graph, initializers: Collection[str], left_float: dict[str, str]) -> list[FoundWeight]:
    """Weights in the order of their first readers; `left_float` gets the reasons of the others.

    initializers: those of the main graph; subgraphs hold a weight of their own only where its name isn't unique.
    """
    found: list[FoundWeight] = []
    known: set[str] = set()
    for node in (node for part in (graph, *graph.subgraphs(recursive=True)) for node in part.nodes):
        for position in OPERATORS.get(node.op, ()) if is_standard(node) else ():
            tensor = _constant_behind(node, position)
            if tensor is None or tensor.name in known or (node.op == "Gather" and not _is_embedding(node, tensor)):
                continue
            known.add(tensor.name)
            reason = _unfit(tensor)
            if reason is None and tensor.name not in initializers:
                reason = "several subgraphs (If, Loop or Scan) hold a constant of this name"
            if reason is not None:
                left_float[tensor.name] = reason
                continue
            reads = list(_reads(tensor, tensor, lambda axis: axis))
            found.append(
                FoundWeight(tensor, [read.node for read in reads], [read.tensor for read in reads], _axis(reads))
            )
    return found


def _constant_behind(node: gs.Node, position: int) -> gs.Constant | None:
    """The constant that an input comes from, up through transpositions."""
    if position >= len(node.inputs):
        return None
    tensor = node.inputs[position]
    while tensor.inputs and tensor.inputs[0].op == "Transpose":
        tensor = tensor.inputs[0].inputs[0]
    return tensor if isinstance(tensor, gs.Constant) else None


def _reads(constant: gs.Constant, tensor: gs.Tensor, source: Callable[[int], int | None]) -> Iterator[_Read]:
    """All layers that read `constant` as `tensor`; `source` maps a dimension of `tensor` to one of the constant."""
    for node in tensor.outputs:
        if node.op == "Transpose":
            rank = len(constant.shape)
            perm = list(node.attrs.get("perm", range(rank)[::-1]))

            def through(axis: int, perm: list[int] = perm) -> int | None:
                return source(perm[axis])

            if not node.outputs[0].shape:
                node.outputs[0].shape = [tensor.shape[axis] for axis in perm]
            yield from _reads(constant, node.outputs[0], through)
            continue
        for position in OPERATORS.get(node.op, ()):
            if position < len(node.inputs) and node.inputs[position] is tensor:
                yield _Read(node, position, tensor, source)


def _axis(reads: list[_Read]) -> int | None:
    """The output channels' dimension, as the readers that have one agree; an embedding alone has its columns."""
    axes = {read.axis for read in reads if read.node.op != "Gather"} or {read.axis for read in reads}
    return axes.pop() if len(axes) == 1 else None


def _channel_axis(node: gs.Node, position: int, rank: int) -> int | None:
    """Which dimension of the tensor read at `position` holds the output channels of `node`."""
    match node.op:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return (0 if node.attrs.get("transB", 0) else 1) if position else int(node.attrs.get("transA", 0))
        case "MatMul" if position and rank > 2:
            # onnxruntime fails at the first run of an integer kernel whose stacked matrices have scales of columns.
            return None
        case "MatMul":
            return rank - 1 if position else rank - 2
        case "Gather":
            return rank - 1
        case _:  # the rows of all gates: [directions, gates * hidden, inputs]
            return 1


def _is_embedding(node: gs.Node, tensor: gs.Tensor) -> bool:
    return node.attrs.get("axis", 0) == 0 and len(tensor.shape) == 2 and not isinstance(node.inputs[1], gs.Constant)


def _unfit(tensor: gs.Constant) -> str | None:
    dtype = np.dtype(tensor.dtype) if isinstance(tensor.dtype, (type, np.dtype)) else None
    if dtype != np.float32:
        kind = dtype.name if dtype is not None else "another type"
        return f"its values are {kind}: only float32 weights are quantized, so convert the model to float32"
    if len(tensor.shape) < 2:
        return "it is a vector or a scalar: too few values a channel to be worth a width"
    values = tensor.values
    if not values.size:
        return "it is empty"
    if not np.isfinite(values).all():
        return "it holds NaN or infinity"
    return None
