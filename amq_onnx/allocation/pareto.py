"""The frontier of size and loss: an exact optimum for each of many size budgets."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import pairwise

import numpy as np

from amq_onnx.allocation.problem import Allocation, Problem
from amq_onnx.allocation.solver import Solver

_MOST_SUPPORTED = 4_000_000  # option indices in all supported points together; beyond it they are thinned out


def frontier(problem: Problem, *, points: int = 1000, second_budget: int | None = None) -> list[Allocation]:
    """Pareto-optimal allocations in rising size and falling loss, each the proven optimum of its own size.

    Between the smallest size and the smallest size that reaches the least loss: the optimum of every budget
    on an even grid; the supported (convex hull) points, where no charges and no sites with both costs at
    stake blur them (thinned out evenly in problems of more than about 1,000 sites); then budgets in the
    widest gaps, until there are as many distinct allocations as asked for or no more exist.

    Args:
        problem: sites, options, losses and costs.
        points: budgets on the grid, and distinct allocations to reach where the problem has so many; >= 2.
        second_budget: bound on the sum of second costs, kept by every allocation; None for none.

    Raises:
        Infeasible: the second budget can't be kept.
        ValueError: points is less than 2.
    """
    if points < 2:
        raise ValueError("a frontier has at least 2 points")
    solver = Solver(problem, second_budget)
    low = solver.smallest()
    top = solver.solve(None)
    top = solver.solve(top.size, top)
    bottom = solver.solve(low)
    supported = solver.supported(max(1, _MOST_SUPPORTED // max(1, len(problem.loss))))
    found = {member.size: member for member in (*supported, bottom, top)}
    member = top
    for budget in np.linspace(low, top.size, points).astype(np.int64)[::-1].tolist():
        if budget < member.size:  # else the last optimum is this budget's too
            member = solver.solve(budget, member)
            found[member.size] = member
    _refine(solver, found, points)
    result: list[Allocation] = []
    for size in sorted(found):
        if not result or found[size].loss < result[-1].loss:
            result.append(found[size])
    return result


def _refine(solver: Solver, found: dict[int, Allocation], points: int) -> None:
    """Bisect the widest ranges of budgets until there are enough members or no budget is unsettled."""
    sizes = sorted(found)
    # Budgets first + 1 to last are unsettled; the optimum of budget first has the size given third.
    ranges = [(a + 1 - b, a, b - 1, a) for a, b in pairwise(sizes)]
    heapify(ranges)
    while len(found) < points and ranges:
        _, first, last, size = heappop(ranges)
        if first >= last:
            continue
        middle = (first + last + 1) // 2
        member = solver.solve(middle, found[size])
        if member.size > first:
            found[member.size] = member
            heappush(ranges, (first + 1 - member.size, first, member.size - 1, size))
            size = member.size
        heappush(ranges, (middle - last, middle, last, size))
