"""QuantizeLinear -> Clip -> DequantizeLinear as one step.

A simulated graph quantizes and dequantizes every activation with one scale, and all that happens between the two is
that codes are bounded. As one step this takes half as many passes over memory, forwards and backwards, and holds no
codes for the way back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from functools import partial

from torch import Tensor

from amq_onnx.executor.bound import Bound
from amq_onnx.executor.ops.quantization import round_trip
from amq_onnx.executor.registry import Operator
from amq_onnx.executor.types import RANGES

Constants = Callable[[str], Tensor | None]
"""The value of a tensor that is known before a graph runs, by name."""


def round_trips_joined(
    bound: Sequence[Bound], kept: AbstractSet[str], given: AbstractSet[str], constant: Constants
) -> list[Bound]:
    """Nodes in their order, with one in place of every QuantizeLinear, Clips of its codes and DequantizeLinear, where
    both have the same scale and zero point, bounds are known, and nothing else reads the codes.

    kept: tensors that have to be made. given: those that are handed in.
    """
    readers = Counter(name for each in bound for name in each.reads)
    producers = {each.node.outputs[0]: each for each in bound if each.node.op_type in ("QuantizeLinear", "Clip")}
    joined: dict[str, Bound] = {}
    within: set[str] = set()
    for last in bound:
        if last.node.op_type != "DequantizeLinear":
            continue
        chain = [last]
        while chain[-1].node.op_type != "QuantizeLinear":
            codes = chain[-1].reads[0]
            if codes not in producers or readers[codes] > 1 or codes in kept or codes in given:
                break
            chain.append(producers[codes])
        else:
            ends = _ends(chain, constant)
            if ends is not None:
                joined[last.node.outputs[0]] = _joined(chain[-1], last, *ends)
                within.update(each.node.outputs[0] for each in chain[1:])
    outside = (each for each in bound if within.isdisjoint(each.node.outputs))
    return [joined.get(each.node.outputs[0], each) if each.node.outputs else each for each in outside]


def _ends(chain: Sequence[Bound], constant: Constants) -> tuple[int, int] | None:
    """The first and the last code less the zero point; None where it takes more than a number each to tell them.

    chain: DequantizeLinear, Clips and QuantizeLinear, the last node first.
    """
    first = chain[-1]
    kind = first.node.output_types[0]
    if kind not in RANGES or chain[0].reads[1:] != first.reads[1:]:
        return None
    if any(first.node.integer(place, 1) != chain[0].node.integer(place, 1) for place in ("axis", "block_size")):
        return None
    low, high = RANGES[kind]
    zero_point = 0
    if len(first.reads) > 2 and first.reads[2]:
        known = constant(first.reads[2])
        if known is None or known.dim():
            return None
        zero_point = int(known)
    for clip in chain[1:-1]:
        named = [*clip.reads[1:], "", ""][:2]
        bounds = [constant(name) if name else None for name in named]
        if clip.node.opset < 11 or any(name and bound is None for name, bound in zip(named, bounds, strict=True)):
            return None
        if bounds[0] is not None:
            low = max(low, int(bounds[0]))
        if bounds[1] is not None:
            high = min(high, int(bounds[1]))
    return (low - zero_point, high - zero_point) if low <= high else None


def _joined(first: Bound, last: Bound, low: int, high: int) -> Bound:
    """What `first`, a QuantizeLinear, and `last`, the DequantizeLinear behind it, do together."""
    operator = Operator(partial(round_trip, low=low, high=high), reads_codes=True)
    return Bound(replace(first.node, outputs=last.node.outputs), operator, {}, first.reads[:2])
