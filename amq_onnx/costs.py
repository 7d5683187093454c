"""What each width costs in the file, and the search problem that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amq_onnx.allocation import Allocation, Problem
from amq_onnx.errors import UsageError
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.encoding import RangeMethod
from amq_onnx.rewriting import Prepared
from amq_onnx.sensitivity import Sensitivity


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Sites with their widths, as a problem for the allocation, and back to a plan.

    sites: names, weights first. widths: by site, the widths in the order of the problem's options. keys: by site
    and option, what the option shares with others in the file. shared: bytes of each such thing. problem: sizes
    are the bytes that an option takes by itself; the second cost is elements x bits of an activation. A width's
    charge is what it alone shares.
    """

    sensitivity: Sensitivity
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    widths: tuple[tuple[int, ...], ...]
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

    def packed_widths(self) -> tuple[int, ...]:
        """Widths of weights below 8 bits, which share tables."""
        return tuple(sorted({bits for row in self.widths[: len(self.weights)] for bits in row if bits < 8}))

    def restricted(self, packed: frozenset[int]) -> tuple[Problem, list[list[int]], int] | None:
        """The problem with no packed weights but of these widths.

        Returns it without charges, the option numbers that its options have here, and the most bytes that they
        can share; None where a site is left without an option.
        """
        kept = [
            [option for option, bits in enumerate(row) if index >= len(self.weights) or bits == 8 or bits in packed]
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
        bits = {
            name: widths[option]
            for name, widths, option in zip(
                (*self.weights, *self.activations), self.widths, allocation.choice, strict=True
            )
        }
        rows = self.sensitivity.activations
        ranges: RangeMethod = self.sensitivity.ranges  # type: ignore[assignment]
        return Plan(
            self.sensitivity.model,
            ranges,
            {name: bits[name] for name in self.weights},
            {name: ActivationPlan(bits[name], rows[name].ranges[bits[name]]) for name in self.activations},
            self.sensitivity.left_float,
            self.sensitivity.expected_inputs,
        )

    def second_budget(self, average: float | None) -> int | None:
        """The bound on elements x bits that an element-weighted mean width of activations makes."""
        return None if average is None else int(average * self.activation_elements + 1e-9)


def search_space(
    prepared: Prepared,
    sensitivity: Sensitivity,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int] | None,
) -> SearchSpace:
    """The problem of choosing among `weight_bits` and `activation_bits` (None: activations stay float).

    Raises UsageError for widths that the sensitivity table or the target doesn't have.
    """
    target = prepared.target
    weights = [site for site in prepared.sites.weights if site.name in sensitivity.weights]
    names = {site.name for site in prepared.sites.activations}
    activations = [name for name in sensitivity.activations if name in names] if activation_bits else []
    loss: list[list[float]] = []
    size: list[list[int]] = []
    second: list[list[int]] = []
    keys: list[tuple[frozenset[str], ...]] = []
    widths: list[tuple[int, ...]] = []
    for site in weights:
        row = sensitivity.weights[site.name]
        options = _offered(site.name, weight_bits, row.widths(), target.weight_widths)
        key, conv, integer = prepared.keys[site.name], site.operators == ("Conv",), site.is_integer(activations)
        widths.append(options)
        loss.append([row.omega(bits) for bits in options])
        recipes = [target.weight(key, site.shape, bits, integer) for bits in options]
        size.append([target.weight_bytes(key, recipe, site.channels, conv=conv) for recipe in recipes])
        second.append([0] * len(options))
        keys.append(tuple(target.closure(recipe.shared) for recipe in recipes))
    for name in activations:
        activation = sensitivity.activations[name]
        options = _offered(name, activation_bits or (), activation.widths(), target.activation_widths)
        encodings = [activation_encoding(*activation.ranges[bits], bits) for bits in options]
        widths.append(options)
        loss.append([activation.omega(bits) for bits in options])
        size.append([target.activation_bytes(prepared.keys[name], encoding) for encoding in encodings])
        second.append([activation.elements * bits for bits in options])
        # The bound 0 is there anyway, as the zero point of most activations.
        keys.append(tuple(frozenset(target.activation_constants(encoding)) - {"c0"} for encoding in encodings))
    shared = {key: target.shared(key).file_bytes() for row in keys for used in row for key in used}
    label = [[bits if bits < 8 and index < len(weights) else -1 for bits in row] for index, row in enumerate(widths)]
    return SearchSpace(
        sensitivity,
        tuple(site.name for site in weights),
        tuple(activations),
        tuple(widths),
        tuple(keys),
        shared,
        Problem(loss, size, second, label, _charges(label, keys, shared)),
        sum(sensitivity.activations[name].elements for name in activations),
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
            f"{', '.join(map(str, measured))}): compute it again with --bits or --activation-bits that cover it"
        )
    unwritable = sorted(set(asked) - set(written))
    if unwritable:
        raise UsageError(f"the target can't write '{name}' with {unwritable[0]} bits")
    return tuple(sorted(set(asked)))
