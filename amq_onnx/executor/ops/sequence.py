"""Sequences, held as lists of tensors, and optionals, held as what they contain or None."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amq_onnx.errors import DataError
from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.shape import scalar
from amq_onnx.executor.registry import operator


@operator("SequenceConstruct")
def sequence_construct(node: NodeContext, *tensors: Tensor) -> list[Tensor]:
    """The inputs as a sequence."""
    return list(tensors)


@operator("SequenceEmpty")
def sequence_empty(node: NodeContext) -> list[Tensor]:
    """A sequence of none."""
    return []


@operator("SequenceAt", host=(1,))
def sequence_at(node: NodeContext, sequence: list[Tensor], place: Any) -> Tensor:
    """The tensor at a place, counted from the end where negative."""
    return sequence[int(scalar(place))]


@operator("SequenceInsert", host=(2,))
def sequence_insert(node: NodeContext, sequence: list[Tensor], x: Tensor, place: Any = None) -> list[Tensor]:
    """A sequence with x before the tensor at a place, or at the end."""
    cut = len(sequence) if place is None else int(scalar(place))
    return [*sequence[:cut], x, *sequence[cut:]]


@operator("SequenceErase", host=(1,))
def sequence_erase(node: NodeContext, sequence: list[Tensor], place: Any = None) -> list[Tensor]:
    """A sequence without the tensor at a place, or without its last."""
    cut = (-1 if place is None else int(scalar(place))) % len(sequence)
    return [*sequence[:cut], *sequence[cut + 1 :]]


@operator("SequenceLength")
def sequence_length(node: NodeContext, sequence: list[Tensor]) -> Tensor:
    """The number of tensors, on the CPU."""
    return torch.tensor(len(sequence), dtype=torch.int64)


@operator("ConcatFromSequence")
def concat_from_sequence(node: NodeContext, sequence: list[Tensor]) -> Tensor:
    """The tensors joined along `axis`, or along a new one."""
    return (torch.stack if node.integer("new_axis") else torch.cat)(sequence, node.integer("axis"))


@operator("SplitToSequence", host=(1,))
def split_to_sequence(node: NodeContext, x: Tensor, sizes: int | list[int] | None = None) -> list[Tensor]:
    """Parts of x along `axis`: of the sizes given, of one size, or of length 1."""
    axis = node.integer("axis")
    if sizes is None and not node.integer("keepdims", 1):
        return list(torch.unbind(x, axis))
    return list(torch.split(x, 1 if sizes is None else sizes, axis))


@operator("Optional")
def optional(node: NodeContext, x: Any = None) -> Any:
    """x, or an empty optional."""
    return x


@operator("OptionalHasElement")
def optional_has_element(node: NodeContext, x: Any = None) -> Tensor:
    """Whether the optional holds something, on the CPU."""
    return torch.tensor(x is not None)


@operator("OptionalGetElement")
def optional_get_element(node: NodeContext, x: Any) -> Any:
    """What the optional holds. DataError if nothing."""
    if x is None:
        raise DataError(f"node '{node.label}' asks an optional for its value, but it is empty.")
    return x
