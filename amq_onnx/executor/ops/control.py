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
    return (*carried, *(_stacked(node, stack, 1 + count + i) for i, stack in enumerate(stacks)))


def _stacked(node: NodeContext, stack: list[Tensor], output: int) -> Tensor:
    """What one output of the body gave in all iterations; of the declared type and size if there were none."""
    if stack:
        return torch.stack(stack)
    body = node.subgraphs["body"]
    kind = body.output_types[output]
    dtype = node.held(kind) if kind else node.dtype
    return torch.zeros([0, *body.output_sizes[output]], dtype=dtype, device=node.device)


@operator("Scan")
def scan(node: NodeContext, *inputs: Any) -> tuple[Tensor, ...]:
    """States and scanned inputs in, states and stacked outputs out. Before opset 9 all of them have a batch axis."""
    own, captured = _captured(node, inputs)
    if node.opset >= 9:
        return _scan(node, own, captured, node.integers("scan_input_axes"), node.integers("scan_input_directions"))
    lengths, *own = own
    states = len(own) - node.integer("num_scan_inputs")
    limit = own[states].shape[1]
    results = []
    for item in range(own[0].shape[0]):
        length = limit if lengths is None else int(lengths[item])
        values = [x[item] if i < states else x[item].narrow(0, 0, length) for i, x in enumerate(own)]
        outputs = list(_scan(node, values, captured, None, node.integers("directions")))
        for i in range(states, len(outputs)):  # beyond its length a sequence yields zeros
            rest = outputs[i].new_zeros(limit - length, *outputs[i].shape[1:])
            outputs[i] = torch.cat([outputs[i], rest])
        results.append(outputs)
    return tuple(torch.stack(items) for items in zip(*results, strict=True))


def _scan(
    node: NodeContext,
    own: list[Tensor],
    captured: dict[str, Tensor],
    axes: list[int] | None,
    backward: list[int] | None,
) -> tuple[Tensor, ...]:
    """The body once for each step along `axes` of the scanned inputs."""
    scanned = node.integer("num_scan_inputs")
    states, sequences = own[: len(own) - scanned], own[len(own) - scanned :]
    axes, backward = axes or [0] * scanned, backward or [0] * scanned
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
        torch.movedim(_stacked(node, stack[::-1] if flipped else stack, len(states) + i), 0, axis)
        for i, (stack, axis, flipped) in enumerate(zip(stacks, out_axes, out_backward, strict=True))
    ]
    return (*states, *stacked)


@operator("SequenceMap")
def sequence_map(node: NodeContext, *inputs: Any) -> tuple[list[Tensor], ...]:
    """The body once for each place of the first sequence; other sequences go along, tensors stay the same."""
    own, captured = _captured(node, inputs)
    rows = [
        node.subgraphs["body"]([x[i] if isinstance(x, list) else x for x in own], captured) for i in range(len(own[0]))
    ]
    return tuple([row[i] for row in rows] for i in range(len(node.outputs)))
