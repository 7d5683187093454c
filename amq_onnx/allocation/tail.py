"""What the sites that are still undecided can at best do with the room that a partial choice leaves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amq_onnx.allocation.problem import Floats, Ints, Mask
from amq_onnx.allocation.relaxation import Hull

Numbers = Floats | Ints  # either real or whole, never mixed in one array


@dataclass(frozen=True)
class Tail:
    """The relaxation of rows k, k + 1, ... of a core, for one projection of the two constraints.

    Attributes:
        steps: the hull steps of these rows, as indices into the projection's, shape [steps].
        weight: after 0, 1, ... steps, rising, shape [steps + 1].
        cost: priced loss after the steps, falling, grid units, shape [steps + 1].
        slope: cost saved per weight on each step and 0 after the last, shape [steps + 1].
        others: loss (grid units, rounded), size and second cost after the steps, each of shape [steps + 1];
            None with one constraint, where cost and weight say it all.
    """

    steps: Ints
    weight: Numbers
    cost: Floats
    slope: Floats
    others: tuple[Floats, Ints, Ints] | None

    def best(self, room: Numbers) -> tuple[Ints, Floats, Mask]:
        """Whole steps that fit (at least 0), the least cost in the relaxation, and whether any fit."""
        steps = self.weight.searchsorted(room, side="right") - 1
        fits = steps >= 0
        np.maximum(steps, 0, out=steps)
        following = np.minimum(steps + 1, self.cost.size - 1)
        # From the right end of the piece: all terms are positive, so nothing cancels.
        rest = np.maximum(self.weight[following] - np.maximum(room, self.weight[0]), 0)
        return steps, self.cost[following] + self.slope[steps] * rest, fits


class Projection:
    """A projection over a whole core, from which the tails are cut.

    It keeps one (surrogate) constraint, weight <= room, and prices the others into the cost.

    Args:
        hull: hull steps, sites numbered as rows of the core.
        cost: priced loss of each option, grid units, shape [sites, options].
        weight: projected weight of each option, shape [sites, options].
        others: loss, size and second cost of each option; None with one constraint.
    """

    def __init__(
        self, hull: Hull, cost: Floats, weight: Numbers, others: tuple[Ints, Ints, Ints] | None = None
    ) -> None:
        self.hull = hull
        rows = np.arange(cost.shape[0])
        end = hull.choice(hull.site.size)
        site, before, after = hull.site, hull.before, hull.after
        self._saved = cost[site, before] - cost[site, after]
        self._added = weight[site, after] - weight[site, before]
        self._least_cost = _from_each_on(cost[rows, end])
        self._least_weight = _from_each_on(weight[rows, hull.start])
        self._others: list[tuple[Numbers, Numbers]] = []
        for kind, whole in enumerate(others or ()):
            value = whole.astype(np.float64) if kind == 0 else whole
            self._others.append((value[site, after] - value[site, before], _from_each_on(value[rows, hull.start])))
        # A stack of what is left of the steps: rows leave in order.
        self._left = np.arange(site.size)

    def tail(self, first: int) -> Tail:
        """The tail of rows first, first + 1, ...; to be asked for in rising order of first."""
        self._left = left = self._left[self.hull.site[self._left] >= first]
        cost = np.empty(left.size + 1)
        cost[0] = self._least_cost[first]
        cost[1:] = self._saved[left[::-1]]
        slope = np.zeros(left.size + 1)
        slope[:-1] = self.hull.slope[left]
        others = None
        if self._others:
            loss, size, second = (_running(base[first], change[left]) for change, base in self._others)
            others = loss.astype(np.float64), size.astype(np.int64), second.astype(np.int64)
        weight = _running(self._least_weight[first], self._added[left])
        return Tail(left, weight, cost.cumsum()[::-1], slope, others)

    def complete(self, choice: Ints, first: int, steps: Ints) -> None:
        """Write the options after some steps of the tail of rows first, ... into a choice of the core."""
        choice[first:] = self.hull.start[first:]
        choice[self.hull.site[steps]] = self.hull.after[steps]


def _running(base: np.generic, change: Numbers) -> Numbers:
    result = np.empty(change.size + 1, change.dtype)
    result[0] = base
    result[1:] = change
    return np.asarray(result.cumsum())


def _from_each_on(value: Numbers) -> Numbers:
    """Sums of value[k:] for k = 0, ..., n."""
    return np.concatenate((value[::-1].cumsum()[::-1], np.zeros(1, value.dtype)))
