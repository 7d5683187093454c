"""HAQ's agent on small searches."""

import numpy as np
import pytest
from cli.networks import conv_net

from amq_onnx.compiler import Compiler
from amq_onnx.errors import BudgetError, UsageError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.random_data import random_data
from amq_onnx.rewriting import prepare
from amq_onnx.strategies import haq
from amq_onnx.strategies.haq import AgentOptions, features, lowered, search, widths_of
from amq_onnx.strategies.plain import uniform_bytes

WIDTHS = (2, 4, 6, 8)


@pytest.fixture(scope="module")
def compiler():
    model = conv_net()
    prepared = prepare(model)
    options = SensitivityOptions(method="norm", samples=8)
    table = measure_sensitivity(prepared, random_data(model, 8, 0), WIDTHS, (4, 6, 8), options)
    return Compiler(prepared, table, WIDTHS, (4, 6, 8), activation_average=6.0)


def test_actions_are_equal_parts_of_the_interval():
    assert widths_of([0.0, 0.24, 0.26, 0.99, 1.0, -0.1], [4] * 6) == (0, 0, 1, 3, 3, 0)


def test_features_tell_layers_apart_and_are_shares(compiler):
    found = features(compiler)
    assert found.shape == (len(compiler.space.widths), 9)
    assert found.min() >= 0 and found.max() == 1
    assert len({tuple(row[2:]) for row in found[: len(compiler.space.weights)]}) == len(compiler.space.weights)


def test_lowering_takes_no_more_than_it_must(compiler):
    widest = [len(row) - 1 for row in compiler.space.widths]
    budget = uniform_bytes(compiler, 4) + 300
    found = lowered(compiler, widest, budget)
    allocation = compiler.space.problem.allocation(found)
    assert compiler.predicted_bytes(allocation) <= budget
    assert allocation.second <= compiler.second_budget
    assert lowered(compiler, found, budget) == found
    with pytest.raises(BudgetError):
        lowered(compiler, widest, compiler.base)


def test_the_agent_learns_what_is_rewarded_within_the_budget(compiler):
    """The reward is how much wider the first weight is than the last: nothing for a random plan."""
    pytest.importorskip("stable_baselines3")
    budget = uniform_bytes(compiler, 8)

    def reward(allocation):
        assert compiler.predicted_bytes(allocation) <= budget
        return float(allocation.choice[0] - allocation.choice[2])

    found = search(compiler, budget, reward, AgentOptions(60, 20, seed=0))
    assert found.reward == reward(found.allocation) == 3.0
    assert len(found.rewards) == 60
    assert np.mean(found.rewards[-15:]) > np.mean(found.rewards[:20]) + 1
    again = search(compiler, budget, reward, AgentOptions(60, 20, seed=0))
    assert (again.allocation, again.rewards) == (found.allocation, found.rewards)


def test_without_the_library_there_is_one_sentence(compiler, monkeypatch):
    monkeypatch.setattr(haq.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'amq-onnx\[haq\]'"):
        search(compiler, 10**6, lambda allocation: 0.0)
