"""The exact optimum of a multiple-choice knapsack problem with one or two constraints, without charges.

Every loss is put on a grid of whole numbers, 2**-59 of the incumbent's or finer, so that sums are exact and
don't depend on their order; bounds are in floating point and err on the side of keeping an option.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import frexp, inf

import numpy as np

from amq_onnx.allocation.dual import multipliers
from amq_onnx.allocation.problem import Floats, Ints, Mask
from amq_onnx.allocation.relaxation import Hull, Relaxation, hull
from amq_onnx.allocation.sweep import Core, Outcome, sweep
from amq_onnx.allocation.tail import Projection

_GRID_BITS = 60
_DEAD = 1 << 61  # grid loss of options beyond the incumbent
# (states kept, strict): a narrow sweep is nearly always complete; then a wide one; ties are given up last.
_PASSES = ((2048, False), (1 << 16, False), (1 << 17, True))
_NESTED_PASSES = ((1 << 12, True), (1 << 16, True))
_FEW = 48  # sites of the first restricted core, which is to improve the incumbent
_EXCHANGES = 3  # changes of single sites that improve a first incumbent
_BEAM = 256  # states kept in restricted cores


@dataclass(frozen=True)
class _Bound:
    """The Lagrangian bound: multipliers, its value, what each option adds to it, its rounding error."""

    prices: tuple[float, float]
    value: float
    reduced: Floats
    slip: float


class Knapsack:
    """Sites with regrets and one or two costs, to be solved for any budgets.

    Args:
        regret: loss above the least of the site, inf where there is no option, shape [sites, options].
        size: bytes, shape [sites, options].
        second: the other cost, shape [sites, options]; None if it isn't bounded.
    """

    def __init__(self, regret: Floats, size: Ints, second: Ints | None = None) -> None:
        self.regret = np.where(_dominated(regret, size, second), inf, regret)
        self.rows = np.arange(regret.shape[0])
        self.size, self._size_unit = _in_units(self.regret, size)
        self.second: Ints | None = None
        if second is not None:
            self.second, self._second_unit = _in_units(self.regret, second)

    def scaled(self, budget: int) -> int:
        """A size budget in the units of `size`."""
        return self._size_unit.scaled(budget)

    @cached_property
    def by_size(self) -> Relaxation:
        """The relaxation that keeps the first constraint only."""
        return Relaxation.of(self.regret, self.size)

    @cached_property
    def by_second(self) -> Relaxation:
        """The relaxation that keeps the second constraint only."""
        assert self.second is not None
        return Relaxation.of(self.regret, self.second)

    def loss(self, choice: Ints) -> float:
        """Sum of the regrets of a choice."""
        return float(self.regret[self.rows, choice].sum())

    def fits(self, choice: Ints, budget: int, second_budget: int = 0) -> bool:
        """Whether a choice keeps budgets in bytes."""
        if self.second is not None:
            second_budget = self._second_unit.scaled(second_budget)
        return self._fits(choice, self.scaled(budget), second_budget)

    def _fits(self, choice: Ints, budget: int, second_budget: int) -> bool:
        if int(self.size[self.rows, choice].sum()) > budget or self.loss(choice) == inf:
            return False  # (an option that is dominated here, and has no costs in units, counts as no option)
        return self.second is None or int(self.second[self.rows, choice].sum()) <= second_budget

    def lower_bound(self, budget: int) -> float:
        """No choice within the size budget loses less (inf: none fits), apart from rounding."""
        budget = self.scaled(budget)
        if not self.rows.size:
            return 0.0 if budget >= 0 else inf
        steps, price = self.by_size.at(budget)
        if steps < 0:
            return inf
        return float((self.regret + price * self.size).min(axis=1).sum()) - price * budget

    def optimum(
        self,
        budget: int,
        second_budget: int = 0,
        *,
        known: Ints | None = None,
        cutoff: float = inf,
        nested: bool = False,
    ) -> Ints | None:
        """The choice of least loss within the budgets, shape [sites]; ties: least size, then lexicographic.

        Args:
            budget: bound on the sum of sizes.
            second_budget: bound on the sum of second costs; ignored where there are none.
            known: a choice to start from; it may exceed the budgets.
            cutoff: losses above it needn't be found.
            nested: look only for losses below the cutoff.

        Returns:
            None if no choice keeps the budgets (or beats the cutoff).
        """
        if not self.rows.size:
            return np.zeros(0, np.int64) if budget >= 0 and second_budget >= 0 else None
        budget = self.scaled(budget)
        if self.second is not None:
            second_budget = self._second_unit.scaled(second_budget)
        if not np.isfinite(self.regret).any(axis=1).all():
            return None
        steps, price = self.by_size.at(budget)
        if steps < 0:
            return None
        incumbent: Ints | None = None
        limit = cutoff
        candidates = [self.by_size.hull.choice(steps)] if known is None else [self.by_size.hull.choice(steps), known]
        if self.second is None:
            bound = self._priced((price, 0.0), (budget, 0))
        else:
            more, other = self.by_second.at(second_budget)
            if more < 0:
                return None
            candidates.append(self.by_second.hull.choice(more))
            bound = self._dual(budget, second_budget, (price, other))
        if self.second is None:
            candidates = [self._exchanged(choice, budget) for choice in candidates]
        for choice in candidates:
            if self._fits(choice, budget, second_budget):
                loss = self.loss(choice)
                if loss < limit or (loss == limit and not nested):
                    incumbent, limit = choice, loss
        budgets = (budget, second_budget)
        few = _FEW
        while few < self.rows.size and (limit == inf or self._undecided(bound, limit) > few):
            found = self._restricted(bound, budgets, limit, few)
            if found is not None:
                incumbent, limit = found, self.loss(found)
            few *= 3
        return self._narrow(bound, budgets, incumbent, limit, nested)

    def _narrow(
        self, bound: _Bound, budgets: tuple[int, int], incumbent: Ints | None, limit: float, nested: bool
    ) -> Ints | None:
        """Sweep ever wider cores until one sweep is complete, then branch."""
        limit = min(limit, self._most)  # if nothing is known yet
        plans = list(_NESTED_PASSES if nested else _PASSES)
        live = self.rows
        while plans:
            cap, strict = plans[0]
            if bound.value - bound.slip > limit:
                return incumbent
            grid = _Grid(limit, self.rows.size)
            core, live, fixed = self._core(bound, budgets, grid, limit)
            goal = grid.whole(limit) if incumbent is None else int(grid(self.regret[self.rows, incumbent]).sum())
            outcome: Outcome = sweep(core, goal, cap, strict=strict)
            old = limit
            if outcome.choice is not None:
                fixed[live] = outcome.choice
                incumbent, limit = fixed, self.loss(fixed)
            if outcome.complete and not (limit < old / 64 and not strict):
                return incumbent if strict or outcome.choice is not None else None
            if not outcome.complete:
                if incumbent is not None and bound.value + bound.slip >= limit:
                    return incumbent  # as good as the bound; only its many ties are left
                plans.pop(0)
        return self._branch(budgets, incumbent, limit, int(live[0]), bound)

    def _branch(
        self, budgets: tuple[int, int], incumbent: Ints | None, limit: float, site: int, bound: _Bound
    ) -> Ints | None:
        """Fix each option of one site in turn; each part has multipliers of its own."""
        for option in np.argsort(bound.reduced[site], kind="stable"):
            if not np.isfinite(self.regret[site, option]):
                continue
            regret = self.regret.copy()
            regret[site] = np.inf
            regret[site, option] = self.regret[site, option]
            part = Knapsack(regret, self.size, self.second)  # in its parent's units
            found = part.optimum(*budgets, cutoff=limit, nested=True)
            if found is not None and self.loss(found) < limit:
                incumbent, limit = found, self.loss(found)
        return incumbent

    def _exchanged(self, choice: Ints, budget: int) -> Ints:
        """A choice after the best changes of one site each, into the size budget or within it."""
        if self.loss(choice) == inf:  # with an option that is dominated here
            return choice
        choice = choice.copy()
        for _ in range(_EXCHANGES):
            loss, size = self.regret[self.rows, choice], self.size[self.rows, choice]
            room = budget - int(size.sum())
            gain = np.where(self.size - size[:, None] <= room, self.regret - loss[:, None], inf)
            site, option = divmod(int(gain.argmin()), gain.shape[1])
            # Into the budget at any price, but within it only for less loss.
            if gain[site, option] == inf or (room >= 0 and gain[site, option] >= 0):
                break
            choice[site] = option
        return choice

    def _priced(self, prices: tuple[float, float], budgets: tuple[int, int]) -> _Bound:
        priced = self.regret + prices[0] * self.size
        if self.second is not None and prices[1]:
            priced += prices[1] * self.second
        least = priced.min(axis=1)
        total, given = float(least.sum()), prices[0] * budgets[0] + prices[1] * budgets[1]
        return _Bound(prices, total - given, priced - least[:, None], (total + given) * 2.0**-46)

    def _dual(self, budget: int, second_budget: int, single: tuple[float, float]) -> _Bound:
        assert self.second is not None
        slopes = (self.by_size.hull.slope, self.by_second.hull.slope)
        guess = [
            price or (float(np.median(slope)) if slope.size else 1.0)
            for price, slope in zip(single, slopes, strict=True)
        ]
        budgets = (budget, second_budget)
        found = multipliers(self.regret, (self.size, self.second), budgets, (guess[0], guess[1]))
        # One constraint alone may be all that matters, and then its multiplier is known exactly.
        choices = [found, (single[0], 0.0), (0.0, single[1])]
        bounds = [self._priced(prices, budgets) for prices in choices]
        return max(bounds, key=lambda bound: bound.value)

    def _core(
        self, bound: _Bound, budgets: tuple[int, int], grid: _Grid, limit: float, few: int | None = None
    ) -> tuple[Core, Ints, Ints]:
        """The core, its sites in the order of its rows, and a choice in which the other sites are fixed."""
        slip = bound.slip + limit * 2.0**-46
        base = bound.reduced.argmin(axis=1)
        alive = bound.reduced <= limit - bound.value + slip
        alive &= self.regret <= limit
        if few is None:
            count = alive.sum(axis=1)
            live = np.flatnonzero(count > 1)
            base = np.where(count == 1, alive.argmax(axis=1), base)
        else:
            second_best = np.sort(bound.reduced, axis=1)[:, 1:2].min(axis=1, initial=np.inf)
            live = np.sort(np.argsort(second_best, kind="stable")[:few])
        out = np.ones(self.rows.size, np.bool_)
        out[live] = False
        size = self.size[live]
        spread = bound.prices[0] * np.ptp(np.where(alive[live], size, size.min(initial=0)), axis=1)
        spread = np.ptp(size, axis=1).astype(np.float64) if self.second is None else spread
        second = None
        room, other = budgets[0] - int(self.size[out, base[out]].sum()), 0
        if self.second is not None:
            second = self.second[live]
            spread = spread + bound.prices[1] * np.ptp(second, axis=1)
            other = budgets[1] - int(self.second[out, base[out]].sum())
        # The sites that move the sums most come first: the last ones then fit what little room is left.
        order = np.argsort(-spread, kind="stable")
        live = live[order]
        rank = order.astype(np.int64)
        size = size[order]
        second = None if second is None else second[order]
        loss = grid(self.regret[live])
        scale = grid.scale
        prices = (bound.prices[0] * scale, bound.prices[1] * scale)
        core = Core(
            loss=loss,
            size=size,
            second=second,
            reduced=np.where(alive[live], bound.reduced[live] * scale, np.inf),
            rank=rank,
            room=(room, other),
            prices=prices,
            fixed=int(grid(self.regret[out, base[out]]).sum()),
            bound=bound.value * scale,
            slip=slip * scale + self.rows.size,
            projections=self._projections(live, alive[live], loss, size, second, prices, scale),
        )
        return core, live, base

    def _projections(
        self,
        live: Ints,
        alive: Mask,
        loss: Ints,
        size: Ints,
        second: Ints | None,
        prices: tuple[float, float],
        scale: float,
    ) -> tuple[Projection, ...]:
        real = loss.astype(np.float64)
        if second is None:
            whole = self.by_size.hull
            row = np.full(self.rows.size, -1)
            row[live] = np.arange(live.size)
            site = row[whole.site]
            mine = site >= 0
            steps = Hull(
                whole.start[live],
                site[mine],
                whole.before[mine],
                whole.after[mine],
                whole.slope[mine] * scale,
            )
            return (Projection(steps, real, size),)
        p, q = prices
        views = ((real + q * second, size), (real + p * size, second), (real, p * size + q * second))
        return tuple(
            Projection(hull(np.where(alive, cost, np.inf), weight), cost, weight, (loss, size, second))
            for cost, weight in views
        )

    def _undecided(self, bound: _Bound, limit: float) -> int:
        return int(np.count_nonzero((bound.reduced <= limit - bound.value + bound.slip).sum(axis=1) > 1))

    def _restricted(self, bound: _Bound, budgets: tuple[int, int], limit: float, few: int) -> Ints | None:
        """A good choice below the limit (inf: any), with only the closest decisions left open."""
        ceiling = min(limit, self._most)
        grid = _Grid(ceiling, self.rows.size)
        core, live, fixed = self._core(bound, budgets, grid, ceiling, few)
        outcome = sweep(core, grid.whole(ceiling), _BEAM, strict=False)
        if outcome.choice is None:
            return None
        fixed[live] = outcome.choice
        return fixed if self.loss(fixed) < limit else None

    @cached_property
    def _most(self) -> float:
        """Clearly more than the loss of the worst options, so that strict searches find even those."""
        worst = float(np.where(np.isfinite(self.regret), self.regret, 0.0).max(axis=1).sum())
        return worst * (1 + 2.0**-20) or 1.0


def _dominated(regret: Floats, size: Ints, second: Ints | None) -> Mask:
    """Options that another of their site beats or equals in everything (of equals the first stays)."""
    result = np.zeros(regret.shape, np.bool_)
    for k in range(regret.shape[1]):
        loss, bytes_, other = regret[:, k, None], size[:, k, None], None
        worse = (loss <= regret) & (bytes_ <= size)
        equal = (loss == regret) & (bytes_ == size)
        if second is not None:
            other = second[:, k, None]
            worse &= other <= second
            equal &= other == second
        worse[:, : k + 1] &= ~equal[:, : k + 1]
        result |= worse
    return result


@dataclass(frozen=True)
class _Unit:
    """Whole costs counted from a floor in steps of a common divisor."""

    floor: int
    step: int

    def scaled(self, budget: int) -> int:
        return (budget - self.floor) // self.step


def _in_units(regret: Floats, cost: Ints) -> tuple[Ints, _Unit]:
    """Costs counted from the least of each site, over their greatest common divisor.

    What no sum can use up of a budget would be a gap that no multiplier closes.
    """
    there = np.isfinite(regret)
    far = np.iinfo(np.int64).max
    floor = np.where(there, cost, far).min(axis=1, initial=far)
    floor = np.where(floor == far, 0, floor)
    above = np.where(there, cost - floor[:, None], 0)
    step = int(np.gcd.reduce(above, axis=None)) or 1
    return above // step, _Unit(int(floor.sum()), step)


class _Grid:
    """Whole numbers for losses: the limit lands between 2**59 and 2**60."""

    def __init__(self, limit: float, sites: int) -> None:
        # A limit of zero: only options without regret are alive, any grid will do.
        self.scale = 2.0 ** min(1000, _GRID_BITS - frexp(limit)[1]) if limit > 0 else 1.0
        self.sites = sites

    def __call__(self, loss: Floats) -> Ints:
        with np.errstate(over="ignore"):
            return np.rint(np.minimum(loss * self.scale, float(_DEAD))).astype(np.int64)

    def whole(self, loss: float) -> int:
        """A grid loss that no choice with this loss exceeds."""
        return int(loss * self.scale) + self.sites + 1
