"""What each width costs in the file, and the search problem that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amq_onnx.allocation import Allocation, Problem
from amq_onnx.errors import UsageError
from amq_onnx.model.sites import WeightSite
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.encoding import RangeMethod
from amq_onnx.rewriting import Prepared
from amq_onnx.sensitivity import Sensitivity


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Sites with their widths, as a problem for the allocation, and back to a plan.

    sites: names, weights first. widths: by site, the widths in the order of the problem's options. Sizes are the
    bytes that depend on the width; the second cost is elements x bits of an activation.
    """

    sensitivity: Sensitivity
    weights: tuple[str, ...]
    activations: tuple[str, ...]
    widths: tuple[tuple[int, ...], ...]
    problem: Problem
    activation_elements: int

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
    target = prepared.target()
    weights = [site for site in prepared.sites.weights if site.name in sensitivity.weights]
    names = {site.name for site in prepared.sites.activations}
    activations = [name for name in sensitivity.activations if name in names] if activation_bits else []
    loss: list[list[float]] = []
    size: list[list[int]] = []
    second: list[list[int]] = []
    label: list[list[int]] = []
    widths: list[tuple[int, ...]] = []
    for site in weights:
        row = sensitivity.weights[site.name]
        options = _offered(site.name, weight_bits, row.widths(), target.weight_widths)
        widths.append(options)
        loss.append([row.omega(bits) for bits in options])
        size.append([_weight_bytes(prepared, site, bits) for bits in options])
        second.append([0] * len(options))
        label.append([bits if bits < 8 else -1 for bits in options])
    for name in activations:
        activation = sensitivity.activations[name]
        options = _offered(name, activation_bits or (), activation.widths(), target.activation_widths)
        widths.append(options)
        loss.append([activation.omega(bits) for bits in options])
        encodings = [activation_encoding(*activation.ranges[bits], bits) for bits in options]
        size.append([target.activation_bytes(prepared.keys[name], encoding) for encoding in encodings])
        second.append([activation.elements * bits for bits in options])
        label.append([-1] * len(options))
    used = {bits for row in label for bits in row if bits > 0}
    problem = Problem(loss, size, second, label, {bits: target.weight_charge(bits) for bits in used})
    return SearchSpace(
        sensitivity,
        tuple(site.name for site in weights),
        tuple(activations),
        tuple(widths),
        problem,
        sum(sensitivity.activations[name].elements for name in activations),
    )


def _weight_bytes(prepared: Prepared, site: WeightSite, bits: int) -> int:
    return prepared.target().weight_bytes(
        prepared.keys[site.name], site.shape, site.shape[site.axis], bits, site.operators == ("Conv",)
    )


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
