"""The exact optimum with charges and two budgets: labels are branched on, independent sites split off."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import fsum, inf

import numpy as np

from amq_onnx.allocation.knapsack import Knapsack
from amq_onnx.allocation.problem import Allocation, Infeasible, Ints, Mask, Problem

_LOOSE = 1 + 2.0**-40  # a cutoff on sums of regrets that rounding can't push below the optimum
_Labels = frozenset[int]
_NONE: _Labels = frozenset()


@dataclass(frozen=True)
class _Node:
    """The choices that pay for some labels, do without some, and have yet to decide on the others."""

    paid: _Labels
    barred: _Labels
    free: tuple[int, ...]


class Solver:
    """Solves one problem for any number of size budgets.

    Args:
        problem: the problem.
        second_budget: bound on the sum of second costs, None for none.

    Raises:
        Infeasible: the second budget is below the least possible sum.
    """

    def __init__(self, problem: Problem, second_budget: int | None = None) -> None:
        self.problem = problem
        self.table = problem.table
        self.second_budget = second_budget
        self.room: int | None = None  # of the second budget, above the least second costs
        if second_budget is not None:
            if second_budget < self.table.second_floor:
                raise Infeasible("second", self.table.second_floor, second_budget)
            room = second_budget - self.table.second_floor
            if room < int(self.table.second.max(axis=1, initial=0).sum()):
                self.room = room
        self._separate: dict[_Labels, _Separate] = {}
        self.apart_of: dict[tuple[int, bytes], Ints | None] = {}  # shared by the bars on labels

    def without(self, barred: _Labels) -> _Separate:
        """The problem less the options of some labels, where nothing is charged."""
        if barred not in self._separate:
            allowed = np.isfinite(self.table.regret) & ~np.isin(self.table.label, list(barred))
            self._separate[barred] = _Separate(self, allowed)
        return self._separate[barred]

    def solve(self, size_budget: int | None, known: Allocation | None = None) -> Allocation:
        """The optimum for a size budget in bytes (None: no bound).

        A known allocation, within the budgets or over the one of size, may be given to start from.

        Raises:
            Infeasible: no choice keeps the budgets.
        """
        charges = {label: int(self.problem.charge[label]) for label in self.problem.charged}
        if size_budget is None:
            budget = int(self.table.size.max(axis=1, initial=0).sum()) + sum(charges.values())
        else:
            budget = size_budget - self.table.size_floor
        start = None if known is None else np.array(known.choice, np.int64)
        best: tuple[float, int, tuple[int, ...]] | None = None
        limit = inf
        if start is not None and known is not None and known.size <= budget + self.table.size_floor:
            best, limit = (known.loss, known.size, known.choice), self._regret(start) * _LOOSE
        nodes = [_Node(_NONE, _NONE, self.problem.charged)]
        while nodes:
            node = nodes.pop()
            part = self.without(node.barred)
            room = budget - sum(charges[label] for label in node.paid)
            if not part.possible or part.lower_bound(room) > limit:
                continue
            used = self._used(part.guess(room), node.free)
            if not used:
                choice = part.optimum(room, start, limit)
                if choice is None:
                    continue
                found = self.problem.allocation(choice.tolist())
                key = (found.loss, found.size, found.choice)
                if found.size <= budget + self.table.size_floor and (best is None or key < best):
                    best, limit = key, min(limit, self._regret(choice) * _LOOSE)
                used = self._used(choice, node.free)
                if not used:
                    continue
            # All the choices of the node, in parts: those that do without a label in use (the k-th, and pay
            # for those before it), and, to be looked at first, those that pay for all of them.
            for k, label in enumerate(used):
                paid = node.paid | set(used[:k])
                nodes.append(_Node(paid, node.barred | {label}, _less(node.free, used[: k + 1])))
            nodes.append(_Node(node.paid | set(used), node.barred, _less(node.free, used)))
        if best is None:
            assert size_budget is not None
            raise Infeasible("size", self.smallest(), size_budget)
        return self.problem.allocation(best[2])

    def lower_bound(self, size_budget: int) -> float:
        """No allocation within the size budget loses less, charges and the second budget left out of account."""
        regret = self.without(_NONE).lower_bound(size_budget - self.table.size_floor)
        least = fsum(map(min, self.problem.loss))
        return (regret + least) * (1 - 2.0**-40) if regret < inf else inf

    def smallest(self) -> int:
        """The smallest possible size, bytes."""
        charges = {label: int(self.problem.charge[label]) for label in self.problem.charged}
        bounds: list[tuple[int, tuple[int, ...]]] = []
        for barred in _subsets(self.problem.charged):
            part = self.without(frozenset(barred))
            if part.possible:
                paid = sum(cost for label, cost in charges.items() if label not in barred)
                bounds.append((part.least_size + paid, barred))
        best: int | None = None
        for bound, barred in sorted(bounds):
            if best is not None and bound >= best:
                break
            part = self.without(frozenset(barred))
            size = part.smallest()
            if size is not None and (best is None or size + bound - part.least_size < best):
                best = size + bound - part.least_size
        # Without any bar the least second costs are within reach, so there is a size.
        assert best is not None
        return best + self.table.size_floor

    def supported(self, most: int) -> list[Allocation]:
        """Allocations on the lower convex hull of (size, loss), evenly thinned out to the given number.

        Empty where charges or sites with both costs at stake make the hulls of the sites say little.
        """
        part = self.without(_NONE)
        if self.problem.charged or (self.room is not None and part.split is None):
            return []
        count = part.hull_steps() + 1
        steps = np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64)).tolist()
        choices = [part.supported(step) for step in steps]
        return [self.problem.allocation(choice.tolist()) for choice in choices if choice is not None]

    def _used(self, choice: Ints, among: tuple[int, ...]) -> tuple[int, ...]:
        if not among:
            return ()
        labels = set(np.unique(self.table.label[np.arange(choice.size), choice]).tolist())
        return tuple(label for label in among if label in labels)

    def _regret(self, choice: Ints) -> float:
        return float(self.table.regret[np.arange(choice.size), choice].sum())


class _Separate:
    """A problem without charges, split into the sites that share the size budget and those that don't."""

    def __init__(self, solver: Solver, allowed: Mask) -> None:
        table = solver.table
        self.room = solver.room
        self.possible = bool(allowed.any(axis=1).all())
        if not self.possible:
            return
        self.regret = np.where(allowed, table.regret, np.inf)
        self.size, self.second, self.allowed = table.size, table.second, allowed
        size_low, size_high = _range(self.size, allowed)
        second_low, second_high = _range(self.second, allowed)
        self.least_size = int(size_low.sum())
        self.most_size = int(size_high.sum())
        self.least_second = int(second_low.sum())
        self.everything = Knapsack(self.regret, self.size)
        self.split: tuple[Ints, Ints] | None = None
        self.apart_of = solver.apart_of
        if self.room is not None:
            other = second_low < second_high
            if not np.any(other & (size_low < size_high)):
                self.split = np.flatnonzero(~other), np.flatnonzero(other)
                mine, rest = self.split
                self.mine = Knapsack(self.regret[mine], self.size[mine])
                self.spent = int(size_low[rest].sum())
                self.left = self.room - int(second_low[mine].sum())
                self.others = Knapsack(self.regret[rest], self.second[rest])
            else:
                self.coupled = Knapsack(self.regret, self.size, self.second)

    def lower_bound(self, room: int) -> float:
        if self.room is not None and self.least_second > self.room:
            return inf
        # Less what rounding may have added.
        value = self.everything.lower_bound(room)
        return value - 2.0**-40 * abs(value) if value < inf else inf

    def guess(self, room: int) -> Ints:
        """The relaxation's choice within the size budget, the second budget left out of account."""
        relaxation = self.everything.by_size
        return relaxation.hull.choice(max(relaxation.at(self.everything.scaled(room))[0], 0))

    def optimum(self, room: int, known: Ints | None, cutoff: float) -> Ints | None:
        if self.room is None:
            return self.everything.optimum(room, known=known, cutoff=cutoff)
        if self.split is not None:
            mine = self.split[0]
            apart = self._apart()
            if apart is None:
                return None
            given = None if known is None else known[mine]
            spare = cutoff - self.others.loss(apart) + abs(cutoff) * 2.0**-40 if cutoff < inf else inf
            near = self.mine.optimum(room - self.spent, known=given, cutoff=spare)
            return self._joined(near, apart)
        alone = self.everything.optimum(room, cutoff=cutoff)
        if alone is None or self.coupled.fits(alone, room, self.room):
            return alone
        if room >= self.most_size:
            # Nearly one constraint: its optimum leaves the other search only the ties, for the least size.
            known = Knapsack(self.regret, self.second).optimum(self.room, cutoff=cutoff)
        return self.coupled.optimum(room, self.room, known=known, cutoff=cutoff)

    def hull_steps(self) -> int:
        """Steps along the convex hull of the sizes."""
        return int((self.everything if self.split is None else self.mine).by_size.hull.site.size)

    def supported(self, steps: int) -> Ints | None:
        """The hull's choice after so many steps; None if the second budget can't be kept."""
        if self.split is None:
            return self.everything.by_size.hull.choice(steps)
        return self._joined(self.mine.by_size.hull.choice(steps), self._apart())

    def _joined(self, near: Ints | None, apart: Ints | None) -> Ints | None:
        assert self.split is not None
        if near is None or apart is None:
            return None
        result = np.empty(near.size + apart.size, np.int64)
        result[self.split[0]], result[self.split[1]] = near, apart
        return result

    def _apart(self) -> Ints | None:
        """The optimum of the sites that share only the second budget; the same for every size budget."""
        key = (self.left, self.others.regret.tobytes())
        if key not in self.apart_of:
            self.apart_of[key] = self.others.optimum(self.left)
        return self.apart_of[key]

    def smallest(self) -> int | None:
        """The least sum of sizes above the floor; None if the second budget can't be kept."""
        if self.room is None:
            return self.least_size
        if self.least_second > self.room:
            return None
        if self.split is not None:
            return self.least_size
        floor = np.where(self.allowed, self.size, np.iinfo(np.int64).max).min(axis=1)
        above = np.where(self.allowed, (self.size - floor[:, None]).astype(np.float64), np.inf)
        choice = Knapsack(above, self.second).optimum(self.room)
        assert choice is not None
        return int(self.size[np.arange(choice.size), choice].sum())


def _range(cost: Ints, allowed: Mask) -> tuple[Ints, Ints]:
    far = np.iinfo(np.int64).max
    low = np.where(allowed, cost, far).min(axis=1, initial=far)
    high = np.where(allowed, cost, -1).max(axis=1, initial=-1)
    return low, high


def _less(labels: tuple[int, ...], gone: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label in labels if label not in gone)


def _subsets(labels: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for count in range(len(labels) + 1):
        yield from combinations(labels, count)


def solve(problem: Problem, size_budget: int | None, second_budget: int | None = None) -> Allocation:
    """The allocation of least total loss within the budgets, proven optimal.

    Losses are compared to about 2**-59 of the optimum's excess over the sites' least losses. Ties go to the
    smaller size; what ties then too, to the lexicographically least choice where only the size is bounded,
    and otherwise to a choice that depends on the problem alone. (Where very many allocations tie, as in
    subset-sum problems, which of them is found is deterministic, but not by this rule.)

    Args:
        problem: sites, options, losses and costs.
        size_budget: most bytes, charges included; None for no bound.
        second_budget: bound on the sum of second costs; None for none.

    Raises:
        Infeasible: no allocation keeps the budgets.
    """
    return Solver(problem, second_budget).solve(size_budget)


def smallest(problem: Problem, second_budget: int | None = None) -> int:
    """The smallest possible size in bytes, charges included, under the second budget if there is one.

    Raises:
        Infeasible: the second budget can't be kept.
    """
    return Solver(problem, second_budget).smallest()
