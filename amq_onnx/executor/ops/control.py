"""If, Loop and Scan: their bodies are programs, called with what they capture from outside."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


def _captured(node: NodeContext, inputs: tuple[Any, ...]) -> tuple[list[Any], dict[str, Tensor]]:
    """Split what a control-flow node reads into its own inputs and the outer tensors of its bodies."""
    count = len(node.inputs)
    return list(inputs[:count]), dict(zip(node.captures, inputs[count:], strict=True))


def _truth(condition: Any) -> bool:
    while isinstance(condition, list):
        condition = condition[0]
    return bool(condition)


@operator("If", host=(0,))
def if_(node: NodeContext, *inputs: Any) -> tuple[Tensor, ...]:
    """Only the branch taken runs."""
    (condition,), captured = _captured(node, inputs)
    branch = node.subgraphs["then_branch" if _truth(condition) else "else_branch"]
    return tuple(branch([], captured))


@operator("Loop", host=(0, 1))
def loop(node: NodeContext, *inputs: Any) -> tuple[Tensor, ...]:
    """The carried tensors after the last iteration, then the scan outputs stacked."""
    (limit, condition, *carried), captured = _captured(node, inputs)
    while isinstance(limit, list):
        limit = limit[0]
    going = condition is None or _truth(condition)
    count, step = len(carried), 0
    stacks: list[list[Tensor]] = [[] for _ in range(len(node.outputs) - count)]
    body = node.subgraphs["body"]
    while going and (limit is None or step < limit):
        state = [torch.tensor(step, dtype=torch.int64), torch.tensor(True), *carried]
        again, *results = body(state, captured)
        going = bool(again)
        carried = results[:count]
        for stack, result in zip(stacks, results[count:], strict=True):
            stack.append(result)
        step += 1
    empty = torch.zeros(0, dtype=node.dtype, device=node.device)
    return (*carried, *(torch.stack(stack) if stack else empty for stack in stacks))


@operator("Scan")
def scan(node: NodeContext, *inputs: Any) -> tuple[Tensor, ...]:
    """Opset 9 on: states and scanned inputs in, states and stacked outputs out."""
    if node.opset < 9:
        raise node.unsupported("the form before opset 9")
    own, captured = _captured(node, inputs)
    scanned = node.integer("num_scan_inputs")
    states, sequences = own[: len(own) - scanned], own[len(own) - scanned :]
    axes = node.integers("scan_input_axes") or [0] * scanned
    backward = node.integers("scan_input_directions") or [0] * scanned
    sequences = [
        torch.flip(x, [axis]) if flipped else x for x, axis, flipped in zip(sequences, axes, backward, strict=True)
    ]
    count = len(node.outputs) - len(states)
    stacks: list[list[Tensor]] = [[] for _ in range(count)]
    for step in range(sequences[0].shape[axes[0]]):
        slices = [x.select(axis, step) for x, axis in zip(sequences, axes, strict=True)]
        results = node.subgraphs["body"]([*states, *slices], captured)
        states = results[: len(states)]
        for stack, result in zip(stacks, results[len(states) :], strict=True):
            stack.append(result)
    out_axes = node.integers("scan_output_axes") or [0] * count
    out_backward = node.integers("scan_output_directions") or [0] * count
    stacked = [
        torch.stack(stack[::-1] if flipped else stack, axis)
        for stack, axis, flipped in zip(stacks, out_axes, out_backward, strict=True)
    ]
    return (*states, *stacked)
