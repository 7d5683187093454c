"""Regret beside a best plan that was found on other samples: benchmarks/regrets.py."""

import importlib
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def regrets(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("regrets")


def of_four_methods(generator, factor):
    """Losses by seed, method and size: `factor` times as large of the first method, else alike but for noise."""
    common = generator.exponential(size=1000)

    def plan(times):
        return times * common * generator.exponential(size=1000)

    return [[[plan(factor if method == 0 else 1) for _ in range(4)] for method in range(4)] for _ in range(4)]


@pytest.mark.parametrize("factor", [1.0, 1.2])
def test_luck_of_the_best_is_no_part_of_it(regrets, factor):
    found = []
    for seed in range(4):
        rivals = of_four_methods(np.random.default_rng(seed), factor)
        ours = [methods[0] for methods in rivals]
        beside_best = [regrets.regret(methods[0], regrets.best_plans(methods))[0] for methods in rivals]
        mean, error = regrets.mean_regret_beside_unseen(ours, rivals)
        assert regrets.geometric_mean(np.array(beside_best)) > factor * 1.02
        assert abs(mean - factor) < 4 * error
        found.append(mean)
    assert np.mean(found) == pytest.approx(factor, rel=0.015)


def test_one_plan_for_all_has_none(regrets):
    plan = np.random.default_rng(0).exponential(size=100)
    assert regrets.mean_regret_beside_unseen([[plan]], [[[plan], [plan]]]) == (1.0, 0.0)
