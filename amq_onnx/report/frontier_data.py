"""The plans of the frontier, as compact data for the page's script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amq_onnx.formats import mix
from amq_onnx.plan import Plan
from amq_onnx.quantizer.encoding import Widths, mean_width
from amq_onnx.report.plotting import labels
from amq_onnx.report.sites import Site, decided
from amq_onnx.result import Result


def frontier_data(result: Result, sites: list[Site]) -> dict[str, Any]:
    """Every plan in full, at a few characters a site.

    sites, labels: names, and short ones. options: mean width and text of all widths that occur. points: of each plan
    [bytes, ΣΩ, mean bits of a weight, [a number into `options` for each site]]; the last is that of the file that was
    written.
    """
    named = decided(sites)
    names = [site.name for site in named]
    numbers: dict[Widths, int] = {}

    def codes(plan: Plan) -> list[int]:
        weights: Mapping[str, Widths] = plan.weights
        chosen = [weights[site.name] if site.weight else plan.activations[site.name].bits for site in named]
        return [numbers.setdefault(widths, len(numbers)) for widths in chosen]

    plans = [(point.bytes, point.perturbation, point.plan) for point in result.frontier]
    plans.append((result.bytes, result.perturbation, result.plan))
    points = [
        [size, perturbation, round(result.sensitivity.mean_bits(plan.weights), 3), codes(plan)]
        for size, perturbation, plan in plans
    ]
    return {
        "float": result.float_bytes,
        "sites": names,
        "labels": labels(names),
        "options": [[round(mean_width(widths), 3), mix(widths)] for widths in numbers],
        "points": points,
    }
