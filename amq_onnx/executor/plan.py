"""The order in which the nodes for some outputs run, and when each tensor is let go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from amq_onnx.executor.node import NodeContext

ABSENT = 0  # the slot of optional inputs that are left out: always None


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One node: what it calls, the slots it reads and writes, and the slots that nothing reads afterwards."""

    function: Callable[..., Any]
    node: NodeContext
    reads: tuple[int, ...]
    writes: tuple[int, ...]  # -1 for an output that nobody reads
    frees: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Steps over numbered slots. `template` holds the constants, `given` the slots that `run` fills."""

    template: list[Any]
    given: tuple[tuple[str, int], ...]
    steps: tuple[Step, ...]
    results: tuple[int, ...]

    def run(self, values: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """The results, in order. Nothing is kept, and a tensor's last reader is also its end."""
        slots = self.template.copy()
        for name, slot in self.given:
            slots[slot] = values[name]
        del values
        for step in self.steps:
            arguments = [slots[i] for i in step.reads]
            try:
                result = step.function(step.node, *arguments)
            except Exception as error:
                error.add_note(f"while running {step.node.op_type} node '{step.node.label}'")
                raise
            if type(result) is tuple:
                for slot, value in zip(step.writes, result, strict=False):
                    if slot >= 0:
                        slots[slot] = value
            else:
                slots[step.writes[0]] = result
            for slot in step.frees:
                slots[slot] = None
        return [slots[slot] for slot in self.results]


def python_value(tensor: torch.Tensor) -> Any:
    """A tensor that acts as an attribute, as a Python number or a (nested) list."""
    return tensor.tolist()


def reading_host_values(function: Callable[..., Any], positions: Sequence[int]) -> Callable[..., Any]:
    """`function` with the tensors at `positions` turned into Python values first."""

    def call(node: NodeContext, *arguments: Any) -> Any:
        values = list(arguments)
        for i in positions:
            if isinstance(values[i], torch.Tensor):
                values[i] = values[i].tolist()
        return function(node, *values)

    return call


def converting(function: Callable[..., Any], dtypes: Mapping[int, torch.dtype]) -> Callable[..., Any]:
    """`function` with the tensors at the positions in `dtypes` converted first."""

    def call(node: NodeContext, *arguments: Any) -> Any:
        values = list(arguments)
        for i, dtype in dtypes.items():
            if isinstance(values[i], torch.Tensor):
                values[i] = values[i].to(dtype)
        return function(node, *values)

    return call


def on_one_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its tensors moved to the accelerator as soon as one of them is there.

    Shapes and small integer constants live on the CPU, where reading them costs no synchronisation; shape
    arithmetic stays there, and only what meets real data moves.
    """

    def call(node: NodeContext, *arguments: Any) -> Any:
        tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
        if len({tensor.device for tensor in tensors}) > 1:
            arguments = tuple(
                value.to(node.device) if isinstance(value, torch.Tensor) else value for value in arguments
            )
        return function(node, *arguments)

    return call
