"""The sites of a result, each with what the figures say of it."""

from __future__ import annotations

from dataclasses import dataclass

from amq_onnx.quantizer.encoding import Widths, distinct
from amq_onnx.result import Result


@dataclass(frozen=True)
class Site:
    """A weight or an activation.

    widths: chosen. omega: by bits, its sensitivity and the standard error of that, 0 where none is known. chosen: Ω at
    the chosen widths. share: of the plan's ΣΩ.
    """

    name: str
    weight: bool
    elements: int
    widths: Widths
    omega: dict[int, tuple[float, float]]
    chosen: float
    share: float


def all_sites(result: Result) -> list[Site]:
    """Weights first, each kind in the graph's order."""
    sensitivity, plan = result.sensitivity, result.plan
    sites = []
    for name, widths in plan.weights.items():
        row = sensitivity.weights[name]
        omega = {bits: (row.omega(bits), row.loss.get(bits, (0.0, 0.0))[1]) for bits in row.widths()}
        share = result.shares.get(name, 0.0)
        sites.append(Site(name, True, row.elements, widths, omega, row.omega(widths), share))
    for name, site in plan.activations.items():
        active = sensitivity.activations[name]
        omega = {bits: (active.omega(bits), active.loss.get(bits, (0.0, 0.0))[1]) for bits in active.widths()}
        share = result.shares.get(name, 0.0)
        sites.append(Site(name, False, active.elements, site.bits, omega, active.omega(site.bits), share))
    return sites


def decided(sites: list[Site]) -> list[Site]:
    """Those with a width that was chosen: weights, and activations where there was more than one to choose from."""
    choices = {bits for site in sites if not site.weight for bits in (*site.omega, *distinct(site.widths))}
    return [site for site in sites if site.weight or len(choices) > 1]
