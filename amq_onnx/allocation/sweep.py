"""Dynamic programming over the undecided sites, site by site, on Pareto states within the gap.

States are partial choices (loss, size, second cost). Dominated states go (Nemhauser, Ullmann, Management
Science 15, 1969), and so do those whose relaxation can't reach the incumbent (the core idea of Pisinger, "A
minimal algorithm for the multiple-choice knapsack problem", EJOR 83, 1995). Every state is also completed
greedily along the hulls of the rest, which keeps the incumbent sharp. With a cap on the states the sweep is a
beam search: it still improves the incumbent but proves nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amq_onnx.allocation.problem import Floats, Ints
from amq_onnx.allocation.tail import Numbers, Projection, Tail

Words = NDArray[np.uint64]
_WORD_BITS = 64
_FEW_OPTIONS = 16


@dataclass(frozen=True)
class Core:
    """The sites that more than one option may still win at, in the order of decision.

    Attributes:
        loss: grid units, shape [sites, options].
        size: bytes, shape [sites, options].
        second: second costs, shape [sites, options]; None with one constraint.
        reduced: what the option adds to the Lagrangian bound, grid units; inf where it is ruled out.
        rank: position of each row among the rows by site index, shape [sites].
        room: what the fixed sites leave of the budgets (size, second).
        prices: the multipliers, grid units per unit of cost.
        fixed: loss of the fixed sites, grid units.
        bound: the Lagrangian bound of the whole problem, grid units.
        slip: what floating point may have lost in the bounds, grid units.
        projections: one with one constraint; by size, by second and by both with two.
    """

    loss: Ints
    size: Ints
    second: Ints | None
    reduced: Floats
    rank: Ints
    room: tuple[int, int]
    prices: tuple[float, float]
    fixed: int
    bound: float
    slip: float
    projections: tuple[Projection, ...]

    @property
    def bits(self) -> int:
        """Bits of an option index in a packed choice."""
        return 4 if self.loss.shape[1] <= _FEW_OPTIONS else 8


@dataclass(frozen=True)
class Outcome:
    """What a sweep found.

    Attributes:
        choice: option of each row of the core, or None if nothing met the limit.
        loss: its loss, grid units (the limit where there is no choice).
        complete: whether no state was dropped for the cap, which makes this the optimum.
    """

    choice: Ints | None
    loss: int
    complete: bool


@dataclass
class _States:
    loss: Ints
    size: Ints
    second: Ints | None
    packed: Words  # [words, states]

    def take(self, index: NDArray[np.generic]) -> _States:
        second = None if self.second is None else self.second[index]
        return _States(self.loss[index], self.size[index], second, self.packed[:, index])


@dataclass(frozen=True)
class _Completion:
    """A state, and the steps along one of the tails that complete it."""

    state: int
    projection: int
    steps: Ints


def sweep(core: Core, limit: int, cap: int, *, strict: bool) -> Outcome:
    """Search a core.

    Args:
        core: what to decide.
        limit: the loss to reach, grid units.
        cap: most states to keep after a site.
        strict: look only for losses below the limit (by more than rounding), not for ties with it. Without
            it, a complete sweep returns the tie of least size, then of lexicographically least choice.
    """
    rows = core.loss.shape[0]
    if not rows and min(core.room) < 0:
        return Outcome(None, limit, True)
    words = max(1, -(-rows * core.bits // _WORD_BITS))
    zero = np.zeros(1, np.int64)
    states = _States(zero + core.fixed, zero, None if core.second is None else zero, np.zeros((words, 1), np.uint64))
    found: Ints | None = None
    complete = True
    for row in range(rows):
        options = np.flatnonzero(core.reduced[row] <= limit - core.bound + core.slip)
        if not options.size:
            break
        count = states.loss.size
        loss = (core.loss[row, options][:, None] + states.loss).ravel()
        size = (core.size[row, options][:, None] + states.size).ravel()
        second = None
        if core.second is not None and states.second is not None:
            second = (core.second[row, options][:, None] + states.second).ravel()
        tails = [projection.tail(row + 1) for projection in core.projections]
        bound, completion = _look_ahead(core, tails, loss, size, second, limit)
        if completion is not None:
            parent, option = completion.state % count, options[completion.state // count]
            choice = _unpack(core, _pack(core, states.packed[:, [parent]], row, np.array([option]))[:, 0])
            core.projections[completion.projection].complete(choice, row + 1, completion.steps)
            # Found in floating point, counted in whole numbers.
            exact = core.fixed + int(core.loss[np.arange(rows), choice].sum())
            if exact < limit:
                found, limit = choice, exact
        kept = np.flatnonzero(bound < limit - core.slip if strict else bound <= limit + core.slip)
        if not kept.size:
            break
        parents, chosen = kept % count, options[kept // count]
        packed = _pack(core, states.packed[:, parents], row, chosen)
        states = _States(loss[kept], size[kept], None if second is None else second[kept], packed)
        order = _undominated(states)
        if order.size > cap:
            complete = False
            ahead = bound[kept[order]]
            order = order[np.sort(np.argpartition(ahead, cap)[:cap])]
        states = states.take(order)
    else:
        if not strict and complete:
            keys = (*states.packed[::-1], states.size, states.loss)
            first = int(np.lexsort(keys)[0])
            return Outcome(_unpack(core, states.packed[:, first]), int(states.loss[first]), True)
    return Outcome(found, limit, complete)


def _look_ahead(
    core: Core, tails: list[Tail], loss: Ints, size: Ints, second: Ints | None, limit: int
) -> tuple[Floats, _Completion | None]:
    """Lower bounds of all states (inf: no room), and the best completion if it seems to beat the limit."""
    room = core.room[0] - size
    if second is None:
        steps, cost, fits = tails[0].best(room)
        whole = loss + tails[0].cost[steps]
        whole[~fits] = np.inf
        at = int(whole.argmin())
        bound = loss + cost
        bound[~fits] = np.inf
        better = whole[at] < limit
        return bound, _Completion(at, 0, tails[0].steps[: steps[at]]) if better else None
    other = core.room[1] - second
    p, q = core.prices
    bound = np.zeros(loss.size)
    best: _Completion | None = None
    least: float = limit
    both: Floats = p * room + q * other
    free: tuple[Numbers, ...] = (room, other, both)
    refunds: tuple[Floats, ...] = (np.multiply(q, other), np.multiply(p, room), np.zeros(loss.size))
    for k, (tail, refund) in enumerate(zip(tails, refunds, strict=True)):
        steps, cost, fits = tail.best(free[k])
        possible = loss + cost - refund
        # The third room is rounded, so it rules nothing out by itself.
        bound = np.maximum(bound, possible if k == 2 else np.where(fits, possible, np.inf))
        assert tail.others is not None
        rest, rest_size, rest_second = tail.others
        whole = np.where((rest_size[steps] <= room) & (rest_second[steps] <= other), loss + rest[steps], np.inf)
        at = int(whole.argmin())
        if whole[at] < least:
            least, best = float(whole[at]), _Completion(at, k, tail.steps[: steps[at]])
    return bound, best


def _undominated(states: _States) -> Ints:
    """Indices of the states to keep, by size; with two constraints some dominated ones may stay."""
    if states.second is None:
        order = np.lexsort((states.loss, states.size))
        loss, size = states.loss[order], states.size[order]
        same = (size[1:] == size[:-1]) & (loss[1:] == loss[:-1])
        if same.any():
            order = np.lexsort((*states.packed[::-1], states.loss, states.size))
        kept = np.empty(order.size, np.bool_)
        kept[0] = True
        np.less(loss[1:], np.minimum.accumulate(loss)[:-1], out=kept[1:])
        return order[kept]
    order = np.lexsort((*states.packed[::-1], states.second, states.loss, states.size))
    for shift in (1, 2, 3, 5, 8, 13, 21, 34, 55):
        if order.size <= shift:
            break
        loss, second = states.loss[order], states.second[order]
        kept = np.ones(order.size, np.bool_)
        kept[shift:] = (loss[:-shift] > loss[shift:]) | (second[:-shift] > second[shift:])
        order = order[kept]
    return order


def _pack(core: Core, packed: Words, row: int, option: Ints) -> Words:
    per_word, rank = _WORD_BITS // core.bits, int(core.rank[row])
    result = packed.copy()
    result[rank // per_word] |= option.astype(np.uint64) << np.uint64(core.bits * (per_word - 1 - rank % per_word))
    return result


def _unpack(core: Core, packed: Words) -> Ints:
    per_word = _WORD_BITS // core.bits
    word, place = core.rank // per_word, core.rank % per_word
    shift = (core.bits * (per_word - 1 - place)).astype(np.uint64)
    return ((packed[word] >> shift) & np.uint64(2**core.bits - 1)).astype(np.int64)
