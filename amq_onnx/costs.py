"""What each width costs in the file, and the search problem that follows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import TypeVar

import numpy as np

from amq_onnx.allocation import Allocation, Problem, channel_mixes
from amq_onnx.errors import UsageError
from amq_onnx.model.sites import WeightSite
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.encoding import RangeMethod, Widths, distinct
from amq_onnx.recipe import Recipe
from amq_onnx.rewriting import Prepared
from amq_onnx.sensitivity import Sensitivity, WeightRow
from amq_onnx.targets import Target

# Mixes of widths offered for each weight: their sizes are then some hundredths of the weight's apart, and those of all
# weights together a byte or two.
_MIXES = 48
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Sites with their widths, as a problem for the allocation, and back to a plan.

    sites: names, weights first. widths: by site, the widths in the order of the problem's options, of weights those of
    all channels alike first, then those that give channels their own. keys: by site and option, what the option shares
    with others in the file. shared: bytes of each such thing. problem: sizes are the bytes that an option takes by
    itself; the second cost is elements x bits of an activation.
    """

    sensitivity: Sensitivity
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    widths: tuple[tuple[Widths, ...], ...]
    keys: tuple[tuple[frozenset[str], ...], ...]
    shared: dict[str, int]
    problem: Problem
    activation_elements: int

    def bytes(self, allocation: Allocation) -> int:
        """Bytes that an allocation's options take, by themselves and for what they share."""
        own = sum(row[option] for row, option in zip(self.problem.size, allocation.choice, strict=True))
        used = frozenset().union(*(row[option] for row, option in zip(self.keys, allocation.choice, strict=True)))
        return own + self.shared_bytes(used)

    def shared_bytes(self, keys: frozenset[str]) -> int:
        """Bytes of what is shared."""
        return sum(self.shared[key] for key in keys)

    def needed_bytes(self, packed: frozenset[int]) -> int:
        """Bytes that are shared in any file that has packed weights of all these widths."""
        by_width: dict[int, frozenset[str]] = {}
        for used, keys in zip(self._packed, self.keys, strict=False):
            for widths, row in zip(used, keys, strict=True):
                for bits in widths:
                    by_width[bits] = by_width.get(bits, row) & row
        return self.shared_bytes(frozenset().union(*(by_width[bits] for bits in packed)))

    def packed_widths(self) -> tuple[int, ...]:
        """Widths of weights below 8 bits, which share tables."""
        used = frozenset().union(*(used for row in self._packed for used in row))
        return tuple(sorted(used))

    @cached_property
    def _packed(self) -> tuple[tuple[frozenset[int], ...], ...]:
        """By weight and option, the widths below 8 bits in it."""
        return tuple(
            tuple(frozenset(bits for bits in distinct(option) if bits < 8) for option in row)
            for row in self.widths[: len(self.weights)]
        )

    def alike(self) -> Problem:
        """The problem of one width a weight, whose options come first: the smallest files are among its plans.

        A width's charge is what it alone shares.
        """
        count = [sum(isinstance(option, int) for option in row) for row in self.widths]
        whole = self.problem
        assert whole.second is not None
        label = [
            [bits if index < len(self.weights) and bits < 8 else -1 for bits in row if isinstance(bits, int)]
            for index, row in enumerate(self.widths)
        ]
        keys = [row[:kept] for row, kept in zip(self.keys, count, strict=True)]

        def cut(rows: Sequence[Sequence[_Number]]) -> list[Sequence[_Number]]:
            return [row[:kept] for row, kept in zip(rows, count, strict=True)]

        charges = _charges(label, keys, self.shared)
        return Problem(cut(whole.loss), cut(whole.size), cut(whole.second), label, charges)

    def restricted(self, packed: frozenset[int]) -> tuple[Problem, list[list[int]], int] | None:
        """The problem with no packed weights but of these widths.

        Returns it without charges, the option numbers that its options have here, and the most bytes that they
        can share; None where a site is left without an option.
        """
        kept = [
            [
                option
                for option in range(len(row))
                if index >= len(self.weights) or self._packed[index][option] <= packed
            ]
            for index, row in enumerate(self.widths)
        ]
        if not all(kept):
            return None
        keys = frozenset().union(*(self.keys[index][option] for index, row in enumerate(kept) for option in row))
        second = self.problem.second
        assert second is not None
        restricted = Problem(
            [[self.problem.loss[index][option] for option in row] for index, row in enumerate(kept)],
            [[self.problem.size[index][option] for option in row] for index, row in enumerate(kept)],
            [[second[index][option] for option in row] for index, row in enumerate(kept)],
        )
        return restricted, kept, self.shared_bytes(keys)

    def plan(self, allocation: Allocation) -> Plan:
        """The plan that an allocation stands for."""
        chosen = [row[option] for row, option in zip(self.widths, allocation.choice, strict=True)]
        count = len(self.weights)
        rows = self.sensitivity.activations
        ranges: RangeMethod = self.sensitivity.ranges  # type: ignore[assignment]
        return Plan(
            self.sensitivity.model,
            ranges,
            dict(zip(self.weights, chosen, strict=False)),
            {
                name: ActivationPlan(bits, rows[name].ranges[bits])
                for name, bits in zip(self.activations, chosen[count:], strict=True)
                if isinstance(bits, int)
            },
            self.sensitivity.left_float,
            self.sensitivity.expected_inputs,
            self.sensitivity.scales,
            self.sensitivity.equalized,
            self.sensitivity.quantized_outputs,
        )

    def second_budget(self, average: float | None) -> int | None:
        """The bound on elements x bits that an element-weighted mean width of activations makes."""
        return None if average is None else int(average * self.activation_elements + 1e-9)


def search_space(
    prepared: Prepared,
    sensitivity: Sensitivity,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int] | None,
    *,
    pinned: Mapping[str, int] | None = None,
    channels: bool = False,
) -> SearchSpace:
    """The problem of choosing among `weight_bits` and `activation_bits` (None: activations stay float).

    pinned: widths of sites that have no choice. channels: offer mixes of widths for the channels of a weight too.
    Raises UsageError for widths that the sensitivity table or the target doesn't have.
    """
    target = prepared.target
    pinned = pinned or {}
    weights = [site for site in prepared.sites.weights if site.name in sensitivity.weights]
    names = {site.name for site in prepared.sites.activations}
    activations = [name for name in sensitivity.activations if name in names] if activation_bits else []
    loss: list[list[float]] = []
    size: list[list[int]] = []
    second: list[list[int]] = []
    keys: list[tuple[frozenset[str], ...]] = []
    widths: list[tuple[Widths, ...]] = []
    for site in weights:
        row = sensitivity.weights[site.name]
        asked = [pinned[site.name]] if site.name in pinned else weight_bits
        single = _offered(site.name, asked, row.widths(), target.weight_widths)
        stored = _Stored(prepared, site, site.is_integer(activations))
        mixes = _mixes(stored, row, single) if channels and site.name not in pinned else ()
        offered: tuple[Widths, ...] = (*single, *mixes)
        widths.append(offered)
        loss.append([row.omega(option) for option in offered])
        size.append([stored.bytes(option) for option in offered])
        second.append([0] * len(offered))
        keys.append(tuple(stored.keys(option) for option in offered))
    for name in activations:
        activation = sensitivity.activations[name]
        asked = [pinned[name]] if name in pinned else activation_bits or ()
        options = _offered(name, asked, activation.widths(), target.activation_widths)
        encodings = [activation_encoding(*activation.ranges[bits], bits) for bits in options]
        widths.append(options)
        loss.append([activation.omega(bits) for bits in options])
        taken = [prepared.activation_bytes(name, encoding) for encoding in encodings]
        # What every width saves is no choice: it counts in none of them.
        size.append([each - min(0, *taken) for each in taken])
        second.append([activation.elements * bits for bits in options])
        # The bound 0 is there anyway, as the zero point of most activations.
        keys.append(tuple(frozenset(target.activation_constants(encoding)) - {"c0"} for encoding in encodings))
    size, keys = _owned(size, keys, target)
    shared = {key: target.shared(key).file_bytes() for row in keys for used in row for key in used}
    return SearchSpace(
        sensitivity,
        tuple(site.name for site in weights),
        tuple(activations),
        tuple(widths),
        tuple(keys),
        shared,
        Problem(loss, size, second),
        sum(sensitivity.activations[name].elements for name in activations),
    )


class _Stored:
    """What a weight takes in the file at any widths; integer: whether an integer kernel reads it."""

    def __init__(self, prepared: Prepared, site: WeightSite, integer: bool) -> None:
        self.prepared = prepared
        self.site = site
        self.integer = integer
        self.target = prepared.target
        self._recipes: dict[Widths, Recipe] = {}

    def recipe(self, widths: Widths) -> Recipe:
        """How it is stored."""
        if widths not in self._recipes:
            self._recipes[widths] = self.prepared.recipe(self.site, widths, self.integer)
        return self._recipes[widths]

    def bytes(self, widths: Widths) -> int:
        """Bytes that depend on its widths."""
        key, conv = self.prepared.keys[self.site.name], self.site.operators == ("Conv",)
        scales = () if self.site.axis is None else (self.site.channels,)
        return self.target.weight_bytes(key, self.recipe(widths), scales, conv=conv)

    def keys(self, widths: Widths) -> frozenset[str]:
        """What it shares with others."""
        return self.target.closure(self.recipe(widths).shared)


def _mixes(stored: _Stored, row: WeightRow, widths: Sequence[int]) -> list[tuple[int, ...]]:
    """Mixes of widths that are worth offering for a weight."""
    site = stored.site
    if site.axis is None:
        return []
    if row.channel_trace is None:
        raise UsageError(
            f"the sensitivity table knows no channels of '{site.name}': measure it with --granularity channel"
        )
    elements = site.elements // site.channels

    def fixed(mix: tuple[int, ...]) -> float:
        if len(mix) == 1:
            return stored.bytes(mix[0]) - site.elements * mix[0] / 8
        dealt = tuple(islice(cycle(mix), site.channels))
        return stored.bytes(dealt) - elements * sum(dealt) / 8

    loss = np.stack([row.channel_omega(bits) for bits in widths], axis=1)
    return channel_mixes(loss, widths, elements, fixed, _MIXES)


def _owned(
    size: list[list[int]], keys: list[tuple[frozenset[str], ...]], target: Target
) -> tuple[list[list[int]], list[tuple[frozenset[str], ...]]]:
    """Sizes and keys where what only one site can need is no longer shared: its bytes are that site's own."""
    users = Counter(key for row in keys for key in frozenset().union(*row))
    single = {key: target.shared(key).file_bytes() for key, count in users.items() if count == 1}
    return (
        [
            [own + sum(single[key] for key in used & single.keys()) for own, used in zip(sizes, row, strict=True)]
            for sizes, row in zip(size, keys, strict=True)
        ],
        [tuple(used - single.keys() for used in row) for row in keys],
    )


def _charges(
    label: Sequence[Sequence[int]], keys: Sequence[Sequence[frozenset[str]]], shared: Mapping[str, int]
) -> dict[int, int]:
    """By width of weights, bytes of what that width alone shares."""
    users: dict[str, set[int]] = {}
    for labels, sets in zip(label, keys, strict=True):
        for bits, used in zip(labels, sets, strict=True):
            for key in used:
                users.setdefault(key, set()).add(bits)
    charges: dict[int, int] = {}
    for key, by in users.items():
        bits = next(iter(by))
        # Shapes belong to some weights of a width, not to all: they are counted with the file instead.
        if len(by) == 1 and bits > 0 and not key.startswith("d"):
            charges[bits] = charges.get(bits, 0) + shared[key]
    return charges


def _offered(name: str, asked: Sequence[int], measured: Sequence[int], written: Sequence[int]) -> tuple[int, ...]:
    missing = sorted(set(asked) - set(measured))
    if missing:
        raise UsageError(
            f"the sensitivity table has no {missing[0]}-bit entry for '{name}' (it has "
            f"{', '.join(map(str, measured))}): compute it again with --bits, --activation-bits or --pin that cover it"
        )
    unwritable = sorted(set(asked) - set(written))
    if unwritable:
        raise UsageError(f"the target can't write '{name}' with {unwritable[0]} bits")
    return tuple(sorted(set(asked)))
