"""Instances of real size against HiGHS, and the hard kinds of the knapsack literature."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from amq_onnx.allocation import Problem, frontier, smallest, solve

WIDTHS = range(2, 9)


def model(weights, activations, seed, *, coupled=False, charges=False):
    rng = np.random.default_rng(seed)
    loss, size, second, label = [], [], [], []
    for site in range(weights + activations):
        elements = int(np.exp(rng.uniform(np.log(2_000), np.log(2_400_000))))
        sensitivity = 10.0 ** rng.uniform(-6, 0)
        loss.append([float(sensitivity * 4.0**-b * rng.lognormal(0, 0.5)) for b in WIDTHS])
        weight = site < weights
        size.append([-(-elements * b // 8) + 64 if weight else 0 for b in WIDTHS])
        work = int(elements * np.exp(rng.uniform(0, 4)))
        second.append([work * b if coupled or not weight else 0 for b in WIDTHS])
        label.append(list(WIDTHS) if weight else [-1] * len(WIDTHS))
    return Problem(loss, size, second, label, {b: 100 + 30 * b for b in WIDTHS} if charges else {})


def part_of(costs, part):
    low, high = sum(map(min, costs)), sum(map(max, costs))
    return low + int(part * (high - low))


def referee(problem, size_budget, second_budget):
    """The loss that HiGHS finds; labels are binary variables after the options."""
    sites, options = len(problem.loss), len(WIDTHS)
    labels = problem.charged
    count = sites * options + len(labels)
    loss = np.concatenate([np.ravel(problem.loss), np.zeros(len(labels))])
    scale = np.median(loss[loss > 0])
    one = csr_array(
        (np.ones(sites * options), (np.repeat(np.arange(sites), options), np.arange(sites * options))),
        shape=(sites, count),
    )
    size = np.concatenate([np.ravel(problem.size), [problem.charge[name] for name in labels]])
    rules = [LinearConstraint(one, 1, 1), LinearConstraint(size / size_budget, -np.inf, 1)]
    if second_budget is not None:
        second = np.concatenate([np.ravel(problem.second), np.zeros(len(labels))])
        rules.append(LinearConstraint(second / second_budget, -np.inf, 1))
    for k, name in enumerate(labels):
        linked = np.flatnonzero(np.ravel(problem.label) == name)
        rows = np.zeros((linked.size, count))
        rows[np.arange(linked.size), linked] = 1
        rows[:, sites * options + k] = -1
        rules.append(LinearConstraint(rows, -np.inf, 0))
    options_given = {"mip_rel_gap": 0, "time_limit": 5}
    result = milp(
        loss / scale,
        integrality=np.ones(count),
        bounds=Bounds(0, 1),
        constraints=rules,
        options=options_given,
    )
    if result.x is None:
        return np.inf, -np.inf
    choice = result.x[: sites * options].reshape(sites, options).argmax(axis=1)
    return problem.allocation(choice.tolist()), result.mip_dual_bound * scale


@pytest.mark.parametrize(
    ("problem", "second_part"),
    [
        (model(54, 0, 1), None),
        (model(54, 72, 2), 0.4),
        (model(54, 20, 3, coupled=True), 0.3),
        (model(40, 0, 4, charges=True), None),
        (model(300, 0, 5), None),
    ],
    ids=["one budget", "two budgets", "shared sites", "charges", "300 sites"],
)
@pytest.mark.parametrize("part", [0.1, 0.45, 0.8])
def test_no_worse_than_highs(problem, second_part, part):
    budget = part_of(problem.size, part)
    second_budget = None if second_part is None else part_of(problem.second, second_part)
    ours = solve(problem, budget, second_budget)
    assert ours == problem.allocation(ours.choice)
    assert ours.size <= budget
    assert second_budget is None or ours.second <= second_budget
    theirs, bound = referee(problem, budget, second_budget)
    # HiGHS allows itself 1e-6 or so of either budget, and stops early now and then; what it returns counts
    # only if it keeps the budgets to the byte, and its bound only up to its tolerance.
    if theirs.size <= budget and (second_budget is None or theirs.second <= second_budget):
        assert ours.loss <= theirs.loss * (1 + 1e-9)
    assert ours.loss >= bound * (1 - 1e-4)


def test_frontier_of_a_model():
    problem = model(54, 12, 6)
    got = frontier(problem, points=150)
    assert len(got) >= 150
    assert got[0].size == smallest(problem)
    assert got[-1].loss == solve(problem, None).loss
    for before, after in pairwise(got):
        assert before.size < after.size
        assert before.loss > after.loss
    for member in got[::7]:
        again = solve(problem, member.size)
        assert (again.loss, again.size) == (member.loss, member.size)


def test_frontier_with_charges_and_a_second_budget():
    problem = model(20, 10, 7, charges=True)
    second_budget = part_of(problem.second, 0.5)
    got = frontier(problem, points=40, second_budget=second_budget)
    assert len(got) >= 40
    for member in got[::5]:
        again = solve(problem, member.size, second_budget)
        assert (again.loss, again.size) == (member.loss, member.size)
        assert member.second <= second_budget


def test_the_same_every_time():
    for problem in (model(54, 30, 8, coupled=True), model(54, 30, 8, charges=True)):
        budget, second_budget = part_of(problem.size, 0.3), part_of(problem.second, 0.3)
        assert solve(problem, budget, second_budget) == solve(problem, budget, second_budget)


def test_order_of_sites_does_not_matter():
    problem = model(60, 0, 9)
    turned = Problem(problem.loss[::-1], problem.size[::-1])
    for part in (0.05, 0.3, 0.95):
        budget = part_of(problem.size, part)
        assert solve(problem, budget).choice == solve(turned, budget).choice[::-1]


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.9, 1.0])
def test_hard_kinds(part):
    rng = np.random.default_rng(10)
    elements = np.exp(rng.uniform(np.log(2_000), np.log(2_400_000), 54)).astype(int).tolist()
    size = [[e * b // 8 for b in WIDTHS] for e in elements]
    most = max(map(max, size))
    budget = part_of(size, part)
    # Subset sum: every byte saved is worth the same, so the budget is to be met to the byte.
    strongly = Problem([[float(most - s) for s in row] for row in size], size)
    exact = solve(strongly, budget)
    assert exact.size == budget
    # Twice the sizes and an odd budget: the last byte is out of reach, which no bound would tell.
    double = Problem(strongly.loss, [[2 * s for s in row] for row in size])
    assert solve(double, 2 * budget + 1).loss == exact.loss
    # One site dominates: the others must still be decided well.
    rest = [[1e-6 * rng.random() * 4.0**-b for b in WIDTHS] for _ in size[1:]]
    dominated = solve(Problem([[1e9 * 4.0**-b for b in WIDTHS], *rest], size), budget)
    left = budget - size[0][dominated.choice[0]]
    assert solve(Problem(rest, size[1:]), left).choice == dominated.choice[1:]
    # All alike: sites take one of two neighbouring widths, and the first of the tied choices wins.
    alike = Problem([[4.0**-b for b in WIDTHS]] * 54, [[100 * b for b in WIDTHS]] * 54)
    choice = solve(alike, part_of(alike.size, part)).choice
    assert list(choice) == sorted(choice)
    assert max(choice) - min(choice) <= 1
    # No loss differs: the smallest.
    assert solve(Problem([[1.0] * 7] * 54, size), budget).size == part_of(size, 0)
