"""What an operator's function may know of the node it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch

from amq_onnx.errors import UnsupportedOperatorError
from amq_onnx.executor.types import held_dtype


@dataclass(frozen=True, slots=True, eq=False)
class Subgraph:
    """The body of a control-flow operator: what runs it, and what is declared of its outputs."""

    run: Callable[[Sequence[Any], Mapping[str, Any]], list[Any]]
    output_types: tuple[int, ...]
    output_sizes: tuple[tuple[int, ...], ...]  # 0 for an axis whose length isn't declared

    def __call__(self, arguments: Sequence[Any], captured: Mapping[str, Any]) -> list[Any]:
        """The outputs for the inputs `arguments`, in order; captured: the outer tensors it reads, by name."""
        return self.run(arguments, captured)


@dataclass(slots=True, eq=False)
class NodeContext:
    """One node: its attributes, opset, names, element types, and where new tensors go."""

    op_type: str
    domain: str
    name: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    input_types: tuple[int, ...]
    output_types: tuple[int, ...]
    attributes: Mapping[str, Any]
    dtype: torch.dtype
    device: torch.device
    captures: tuple[str, ...] = ()  # outer tensors that the subgraphs read; they follow the inputs
    subgraphs: Mapping[str, Subgraph] = field(default_factory=dict)

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        return int(self.attributes.get(name, default))

    def number(self, name: str, default: float = 0.0) -> float:
        """A float attribute."""
        return float(self.attributes.get(name, default))

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        return str(self.attributes.get(name, default))

    def integers(self, name: str) -> list[int] | None:
        """A list of integers, None when the attribute is absent."""
        value: list[int] | None = self.attributes.get(name)
        return value

    def numbers(self, name: str) -> list[float] | None:
        """A list of floats, None when the attribute is absent."""
        value: list[float] | None = self.attributes.get(name)
        return value

    def texts(self, name: str) -> list[str] | None:
        """A list of strings, None when the attribute is absent."""
        value: list[str] | None = self.attributes.get(name)
        return value

    def tensor(self, name: str) -> torch.Tensor | None:
        """A tensor attribute, None when absent."""
        value: torch.Tensor | None = self.attributes.get(name)
        return value

    def held(self, element_type: int) -> torch.dtype:
        """The torch dtype that holds an ONNX element type. UnsupportedOperatorError for strings and such."""
        dtype = held_dtype(element_type, self.dtype)
        if dtype is None:
            raise self.unsupported(f"element type {onnx.TensorProto.DataType.Name(element_type)}")
        return dtype

    def unsupported(self, what: str) -> UnsupportedOperatorError:
        """The error for a form of the operator that the executor lacks."""
        return UnsupportedOperatorError(
            f"the executor's {self.op_type} (domain '{self.domain or 'ai.onnx'}', opset {self.opset}) "
            f"lacks {what}, which node '{self.label}' needs."
        )

    @property
    def label(self) -> str:
        """How a message names this node."""
        return self.name or next((name for name in self.outputs if name), "")
