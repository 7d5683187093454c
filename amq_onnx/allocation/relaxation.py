"""The continuous relaxation: lower convex hulls of the sites, their steps sorted by what a unit buys.

Sinha, Zoltners: "The multiple-choice knapsack problem", Operations Research 27 (1979). The optimum of the
relaxation with one constraint takes the hull steps in the order of their slopes until the budget is full.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amq_onnx.allocation.problem import Floats, Ints


@dataclass(frozen=True)
class Hull:
    """The hull steps of all the sites, steepest first.

    Attributes:
        start: option of each site at the least weight, shape [sites].
        site: site of each step, shape [steps].
        before: option that the step leaves, shape [steps].
        after: option that the step leads to, shape [steps].
        slope: cost saved per unit of weight, falling, shape [steps].
    """

    start: Ints
    site: Ints
    before: Ints
    after: Ints
    slope: Floats

    def choice(self, steps: int) -> Ints:
        """The options after the first so many steps, shape [sites]."""
        result = self.start.copy()
        # Steps of one site are in the order of its hull, so the last write is the furthest.
        result[self.site[:steps]] = self.after[:steps]
        return result


def hull(cost: Floats, weight: NDArray[np.generic]) -> Hull:
    """Lower convex hulls of (weight, cost), from the least weight to the least cost of each site.

    Args:
        cost: shape [sites, options]; inf where there is no option.
        weight: shape [sites, options], any real type.
    """
    sites = cost.shape[0]
    rows = np.arange(sites)
    there = np.isfinite(cost)
    heavy = np.where(there, weight, np.inf)
    lightest = heavy.min(axis=1, initial=np.inf)
    start = np.where(heavy == lightest[:, None], cost, np.inf).argmin(axis=1) if sites else rows
    at = start
    last = np.full(sites, np.inf)
    found: list[tuple[Ints, Ints, Ints, Floats]] = []
    while rows.size:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            saved = cost[rows, at][:, None] - cost[rows]
            added = heavy[rows] - heavy[rows, at][:, None]
            slope = np.where((added > 0) & (saved > 0), saved / added, -1.0)
        best = slope.max(axis=1)
        # Collinear points: the furthest.
        after = np.where(slope == best[:, None], heavy[rows], -np.inf).argmax(axis=1)
        more = best > 0
        rows, before, at, best = rows[more], at[more], after[more], best[more]
        # Rounding must not put a later step of a site before an earlier one.
        last = np.minimum(best, last[more])
        found.append((rows, before, at, last))
    if not found:
        none = np.zeros(0, np.int64)
        return Hull(start, none, none, none, np.zeros(0))
    site, before, after = (np.concatenate([part[k] for part in found]) for k in range(3))
    slopes = np.concatenate([part[3] for part in found])
    order = np.argsort(-slopes, kind="stable")
    return Hull(start, site[order], before[order], after[order], slopes[order])


@dataclass(frozen=True)
class Relaxation:
    """The relaxation with one constraint, solved for every budget at once.

    Attributes:
        hull: the steps.
        weight: weight after 0, 1, ... steps, rising, shape [steps + 1].
    """

    hull: Hull
    weight: Ints

    @classmethod
    def of(cls, cost: Floats, weight: Ints) -> Relaxation:
        """Relax sites with costs (inf: no option) and whole weights, both of shape [sites, options]."""
        steps = hull(cost, weight)
        base = int(weight[np.arange(weight.shape[0]), steps.start].sum())
        added = weight[steps.site, steps.after] - weight[steps.site, steps.before]
        return cls(steps, base + np.concatenate(([0], np.cumsum(added))))

    def at(self, budget: int) -> tuple[int, float]:
        """Whole steps that fit a budget (-1: not even the start), and the multiplier there."""
        steps = int(np.searchsorted(self.weight, budget, side="right")) - 1
        slope = self.hull.slope
        return steps, float(slope[steps]) if 0 <= steps < slope.size else 0.0
