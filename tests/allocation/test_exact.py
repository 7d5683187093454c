"""Small instances against enumeration, degenerate ones included."""

import itertools
import random

import pytest

from amq_onnx.allocation import Allocation, Infeasible, Problem, frontier, knapsack, smallest, solve


def enumerated(problem):
    options = [range(len(row)) for row in problem.loss]
    return [problem.allocation(choice) for choice in itertools.product(*options)]


def key(member):
    return member.loss, member.size, member.choice


def made_up(rng, *, style, second, charges, most_sites=5):
    sites = rng.randint(1, most_sites)
    size = [[rng.randint(0, rng.choice([5, 30])) for _ in range(rng.randint(1, 5))] for _ in range(sites)]
    losses = {
        "whole": lambda s: float(rng.randint(0, 4)),
        "real": lambda s: rng.random(),
        "correlated": lambda s: float(40 - s),
        "huge range": lambda s: 10.0 ** rng.uniform(-12, 12),
        "zero": lambda s: 0.0,
    }
    loss = [[losses[style](s) for s in row] for row in size]
    if second == "apart":
        other = [[rng.randint(0, 9) if min(row) == max(row) else 0 for _ in row] for row in size]
    elif second == "shared":
        other = [[rng.randint(0, 20) if site % 2 else 3 for _ in row] for site, row in enumerate(size)]
    else:
        other = None
    label = [[rng.choice([-1, 2, 3, 4]) for _ in row] for row in size] if charges else None
    charge = {2: rng.randint(0, 9), 3: rng.randint(1, 9), 4: 5} if charges else {}
    return Problem(loss, size, other, label, charge)


STYLES = ["whole", "real", "correlated", "huge range", "zero"]


@pytest.mark.parametrize("charges", [False, True])
@pytest.mark.parametrize("second", [None, "apart", "shared"])
@pytest.mark.parametrize("style", STYLES)
def test_equals_enumeration(style, second, charges):
    rng = random.Random(f"{style} {second} {charges}")
    for _ in range(30):
        problem = made_up(rng, style=style, second=second, charges=charges)
        every = enumerated(problem)
        second_budget = None
        if second is not None:
            second_budget = rng.randint(min(a.second for a in every) - 1, max(a.second for a in every))
        allowed = [a for a in every if second_budget is None or a.second <= second_budget]
        if not allowed:
            with pytest.raises(Infeasible) as caught:
                solve(problem, None, second_budget)
            assert caught.value.constraint == "second"
            assert caught.value.smallest == min(a.second for a in every)
            continue
        least = min(a.size for a in allowed)
        assert smallest(problem, second_budget) == least
        most = max(a.size for a in allowed)
        with pytest.raises(Infeasible) as caught:
            solve(problem, least - 1, second_budget)
        assert (caught.value.constraint, caught.value.smallest) == ("size", least)
        assert caught.value.budget == least - 1
        for budget in {least, most, rng.randint(least, most), rng.randint(least, most), None}:
            got = solve(problem, budget, second_budget)
            best = min((a for a in allowed if budget is None or a.size <= budget), key=key)
            assert got == problem.allocation(got.choice)
            assert got.loss == pytest.approx(best.loss, rel=1e-12, abs=0)
            assert budget is None or got.size <= budget
            assert second_budget is None or got.second <= second_budget
            if style in {"whole", "correlated", "zero"}:
                assert got.size == best.size
                assert second is not None or got == best


@pytest.mark.parametrize("second", [None, "shared"])
def test_branching_is_exact_too(monkeypatch, second):
    """Sweeps that may keep a single state prove next to nothing, so that branching has to."""
    monkeypatch.setattr(knapsack, "_PASSES", ((1, False), (1, True)))
    monkeypatch.setattr(knapsack, "_NESTED_PASSES", ((1, True),))
    monkeypatch.setattr(knapsack, "_EXCHANGES", 0)
    monkeypatch.setattr(knapsack, "_BEAM", 1)
    monkeypatch.setattr(knapsack, "_FEW", 1)
    branched = 0
    branch = knapsack.Knapsack._branch

    def counted(*arguments):
        nonlocal branched
        branched += 1
        return branch(*arguments)

    monkeypatch.setattr(knapsack.Knapsack, "_branch", counted)
    rng = random.Random(f"branch {second}")
    for _ in range(80):
        problem = made_up(rng, style=rng.choice(STYLES), second=second, charges=False, most_sites=6)
        every = enumerated(problem)
        second_budget = None
        if second is not None:
            second_budget = rng.randint(min(a.second for a in every), max(a.second for a in every))
        allowed = [a for a in every if second_budget is None or a.second <= second_budget]
        for _ in range(6):
            budget = rng.randint(min(a.size for a in allowed), max(a.size for a in allowed))
            got = solve(problem, budget, second_budget)
            assert got.size <= budget
            assert second_budget is None or got.second <= second_budget
            best = min(a.loss for a in allowed if a.size <= budget)
            assert got.loss == pytest.approx(best, rel=1e-12, abs=0)
    assert branched > 5


@pytest.mark.parametrize("charges", [False, True])
@pytest.mark.parametrize("second", [None, "apart", "shared"])
@pytest.mark.parametrize("style", ["whole", "real", "correlated"])
def test_frontier_is_the_whole_pareto_set(style, second, charges):
    rng = random.Random(f"frontier {style} {second} {charges}")
    for _ in range(6):
        problem = made_up(rng, style=style, second=second, charges=charges, most_sites=4)
        every = enumerated(problem)
        second_budget = max(a.second for a in every) * 2 // 3 if second else None
        allowed = [a for a in every if second_budget is None or a.second <= second_budget]
        if not allowed:
            continue
        pareto: list[Allocation] = []
        for member in sorted(allowed, key=lambda a: (a.size, a.loss)):
            if not pareto or member.loss < pareto[-1].loss:
                pareto.append(member)
        got = frontier(problem, points=1000, second_budget=second_budget)
        assert [a.size for a in got] == [a.size for a in pareto]
        assert [a.loss for a in got] == pytest.approx([a.loss for a in pareto], rel=1e-12, abs=0)


def test_frontier_refines_until_there_are_enough():
    rng = random.Random(5)
    sizes = [[0, *sorted(rng.sample(range(1, 1 << 20), 4))] for _ in range(4)]
    # One huge step leaves most of an even grid without points of its own.
    sizes.append([0, 1 << 40])
    losses = [[rng.random() + 5 - j for j in range(5)] for _ in range(4)] + [[1e3, 0.0]]
    problem = Problem(losses, sizes)
    got = frontier(problem, points=60)
    best = {a.size: a for a in enumerated(problem)}
    assert len(got) >= 60
    for member in got:
        assert member.loss == pytest.approx(min(a.loss for a in best.values() if a.size <= member.size))


def test_bounds_of_a_frontier():
    problem = Problem([[3.0, 1.0], [2.0, 2.0]], [[1, 5], [2, 2]])
    assert frontier(problem, points=2) == [Allocation((0, 0), 5.0, 3, 0), Allocation((1, 0), 3.0, 7, 0)]
    with pytest.raises(ValueError, match="at least 2"):
        frontier(problem, points=1)


def test_no_sites():
    problem = Problem([], [])
    assert solve(problem, 0) == Allocation((), 0.0, 0, 0)
    assert frontier(problem) == [Allocation((), 0.0, 0, 0)]
    with pytest.raises(Infeasible):
        solve(problem, -1)


def test_a_charge_can_decide():
    # Four bits everywhere beats one site at three as soon as the table costs more than three bits save.
    loss, size, label = [[2.0, 1.0], [2.0, 0.0]], [[90, 100], [90, 100]], [[3, 4], [3, 4]]
    assert solve(Problem(loss, size, None, label, {}), 190).choice == (0, 1)
    assert solve(Problem(loss, size, None, label, {3: 20, 4: 10}), 210).choice == (1, 1)
    assert solve(Problem(loss, size, None, label, {3: 20, 4: 10}), 209).choice == (0, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": [[]], "size": [[]]},
        {"loss": [[1.0] * 257], "size": [[1] * 257]},
        {"loss": [[float("nan")]], "size": [[1]]},
        {"loss": [[float("inf")]], "size": [[1]]},
        {"loss": [[-1.0]], "size": [[1]]},
        {"loss": [[1.0]], "size": [[-1]]},
        {"loss": [[1.0]], "size": [[1.5]]},
        {"loss": [[1.0]], "size": [[1, 2]]},
        {"loss": [[1.0]], "size": [[1], [1]]},
        {"loss": [[1.0]], "size": [[1 << 53]]},
        {"loss": [[1.0]], "size": [[1]], "second": [[-1]]},
        {"loss": [[1.0]], "size": [[1]], "label": [[1]], "charge": {1: -1}},
        {
            "loss": [[1.0] * 9],
            "size": [[1] * 9],
            "label": [list(range(9))],
            "charge": dict.fromkeys(range(9), 1),
        },
    ],
)
def test_bad_problems_are_refused(arguments):
    with pytest.raises(ValueError):
        Problem(**arguments)
