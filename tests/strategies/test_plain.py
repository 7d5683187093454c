"""Rival choices of widths against all plans of a small model."""

import itertools

import numpy as np
import pytest
from cli.networks import conv_net

from amq_onnx.compiler import Compiler
from amq_onnx.errors import BudgetError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.random_data import random_data
from amq_onnx.rewriting import prepare
from amq_onnx.strategies.plain import fitting, mean_traces, random_widths, sampled, uniform, uniform_bytes, worst

WIDTHS = (2, 4, 6, 8)


@pytest.fixture(scope="module")
def prepared_and_table():
    model = conv_net()
    prepared = prepare(model)
    options = SensitivityOptions(method="gauss-newton", relative_error=0.5, max_probes=2, samples=8)
    return prepared, measure_sensitivity(prepared, random_data(model, 8, 0), WIDTHS, (4, 6, 8), options)


@pytest.fixture(scope="module", params=[None, 6.0])
def compiler(request, prepared_and_table):
    active = (8,) if request.param is None else (4, 6, 8)
    return Compiler(*prepared_and_table, WIDTHS, active, activation_average=request.param)


def order_of(table):
    rows = {**table.weights, **table.activations}
    return mean_traces([(name, row.trace, row.elements) for name, row in rows.items()])


def every(compiler):
    """All plans, weights and activations at any widths."""
    problem = compiler.space.problem
    for choice in itertools.product(*(range(len(row)) for row in compiler.space.widths)):
        yield problem.allocation(choice)


def test_sites_are_ordered_by_the_size_of_their_mean_trace():
    assert mean_traces([("a", 6.0, 3), ("b", -10.0, 2), ("c", None, 1), ("d", 4.0, 1)]) == ["b", "d", "a", "c"]


def test_uniform_is_the_widest_that_fits(compiler):
    sizes = {bits: uniform_bytes(compiler, bits) for bits in WIDTHS}
    for size in sizes.values():
        found = uniform(compiler, size + 3)
        widest = max(bits for bits, taken in sizes.items() if taken <= size)
        assert set(found.plan.weights.values()) == {widest}
        assert {site.bits for site in found.plan.activations.values()} == {8 if compiler.second_budget is None else 6}


def test_a_budget_below_the_narrowest_is_refused(compiler):
    with pytest.raises(BudgetError, match="leave uniform out"):
        uniform(compiler, uniform_bytes(compiler, 2) - 1)
    for choose in (
        lambda allowed: random_widths(compiler, allowed, 0),
        lambda allowed: worst(compiler, allowed, order_of(compiler.space.sensitivity)),
    ):
        with pytest.raises(BudgetError):
            fitting(compiler, compiler.base, choose)


def test_a_budget_of_the_smallest_file_gives_it(compiler):
    for choose in (
        lambda allowed: random_widths(compiler, allowed, 0),
        lambda allowed: worst(compiler, allowed, order_of(compiler.space.sensitivity)),
    ):
        found = fitting(compiler, compiler.least_bytes, choose)
        assert found.bytes <= compiler.least_bytes
        assert set(found.plan.weights.values()) == {WIDTHS[0]}


@pytest.mark.parametrize("more", range(200, 3400, 400))
def test_random_widths_use_the_budget_and_follow_from_the_seed(compiler, more):
    budget = uniform_bytes(compiler, 2) + more
    for seed in range(2):
        found = [fitting(compiler, budget, lambda allowed, s=seed: random_widths(compiler, allowed, s)) for _ in "ab"]
        assert found[0].allocation == found[1].allocation
        assert found[0].bytes <= budget
        assert compiler.second_budget is None or found[0].allocation.second <= compiler.second_budget
        for index in range(len(compiler.space.weights)):
            wider = list(found[0].allocation.choice)
            wider[index] += 1
            if wider[index] < len(compiler.space.widths[index]):
                allocation = compiler.space.problem.allocation(wider)
                assert compiler.predicted_bytes(allocation) > budget - 8


def test_seeds_draw_different_widths(compiler):
    choices = {random_widths(compiler, uniform_bytes(compiler, 2) + more, seed).choice
               for seed in range(8) for more in (700, 1100)}  # fmt: skip
    assert len(choices) > 2


def test_the_worst_plan_keeps_the_order_and_no_plan_of_its_size_that_does_is_worse(compiler):
    order = order_of(compiler.space.sensitivity)
    names = [*compiler.space.weights, *compiler.space.activations]
    ranked = sorted(range(len(names)), key=lambda index: order.index(names[index]))
    count = len(compiler.space.weights)
    budget = (uniform_bytes(compiler, 4) + uniform_bytes(compiler, 6)) // 2
    found = fitting(compiler, budget, lambda allowed: worst(compiler, allowed, order)).allocation

    def ordered(allocation):
        groups = [[index for index in ranked if index < count], [index for index in ranked if index >= count]]
        return all(
            allocation.choice[first] >= allocation.choice[second]
            for group in groups
            for first, second in itertools.pairwise(group)
        )

    assert ordered(found)
    size, second = compiler.space.bytes(found), found.second
    # Whatever keeps the order, has no more of either cost and nearly as much of both, loses no more.
    rivals = [
        plan.loss
        for plan in every(compiler)
        if ordered(plan)
        and 0.97 * size <= compiler.space.bytes(plan) <= size
        and (compiler.second_budget is None or 0.99 * second <= plan.second <= second)
    ]
    assert rivals and found.loss >= max(rivals) * (1 - 1e-9)
    assert found.loss > compiler.best(budget).allocation.loss
    assert np.isfinite(found.loss)


def test_samples_are_plans_of_all_sizes(compiler):
    found = sampled(compiler, 200, 0)
    assert found == sampled(compiler, 200, 0) != sampled(compiler, 200, 1)
    known = {(compiler.predicted_bytes(plan), plan.loss) for plan in every(compiler)}
    assert set(found) <= known
    sizes = [size for size, _ in found]
    assert min(sizes) <= uniform_bytes(compiler, 2) + 60 and max(sizes) >= uniform_bytes(compiler, 8) - 60
