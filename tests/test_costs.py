"""What a width costs in the search is what it costs in the file."""

import itertools

import numpy as np
import pytest
from cli.networks import conv_net

from amq_onnx.allocation import solve
from amq_onnx.compiler import compile_plan
from amq_onnx.costs import search_space
from amq_onnx.errors import UsageError
from amq_onnx.measurement import SensitivityOptions, measure_sensitivity
from amq_onnx.model.data import random_data
from amq_onnx.model.file import model_bytes
from amq_onnx.rewriting import prepare

WIDTHS = (2, 4, 8)


@pytest.fixture(scope="module")
def measured():
    model = conv_net()
    prepared = prepare(model)
    options = SensitivityOptions(relative_error=0.5, max_probes=2, samples=8)
    return prepared, measure_sensitivity(prepared, random_data(model, 8, 0), WIDTHS, (4, 8), options)


def test_losses_are_the_omegas_and_costs_the_elements(measured):
    prepared, table = measured
    space = search_space(prepared, table, WIDTHS, (4, 8))
    assert space.weights == ("w1", "w2", "w3")
    assert set(space.activations) == set(table.activations)
    assert space.widths == ((2, 4, 8),) * 3 + ((4, 8),) * len(space.activations)
    for name, losses in zip(space.weights, space.problem.loss, strict=False):
        assert list(losses) == [table.weights[name].omega(bits) for bits in WIDTHS]
    for index, name in enumerate(space.activations, len(space.weights)):
        elements = table.activations[name].elements
        assert list(space.problem.second[index]) == [4 * elements, 8 * elements]
        assert list(space.problem.loss[index]) == [table.activations[name].omega(bits) for bits in (4, 8)]
    assert {second for row in space.problem.second[:3] for second in row} == {0}
    assert space.activation_elements == sum(row.elements for row in table.activations.values())


def test_differences_of_sizes_are_those_of_the_files(measured):
    """Within the same set of widths (what is shared is the same) every plan's file differs by what the search says."""
    prepared, table = measured
    space = search_space(prepared, table, WIDTHS, (8,))
    bases = set()
    for choice in itertools.permutations(range(3)):
        allocation_size = sum(
            space.problem.size[index][option] for index, option in enumerate((*choice, *[0] * len(space.activations)))
        )
        bits = {name: WIDTHS[option] for name, option in zip(space.weights, choice, strict=True)}
        plan = space.plan(solve(space.problem, 10**9))
        plan.weights.update(bits)
        # A weight of 8 bits needs no shape: 20 to 30 bytes that aren't charged.
        bases.add(len(model_bytes(compile_plan(prepared, plan))) - allocation_size)
    assert max(bases) - min(bases) < 40


def test_plan_of_an_allocation(measured):
    prepared, table = measured
    space = search_space(prepared, table, WIDTHS, (4, 8))
    plan = space.plan(solve(space.problem, 10**9))
    assert set(plan.weights.values()) == {8}
    assert {site.bits for site in plan.activations.values()} == {8}
    for name, site in plan.activations.items():
        assert site.range == table.activations[name].ranges[8]
    assert plan.model == table.model
    assert plan.ranges == table.ranges


@pytest.mark.parametrize(("average", "wanted"), [(None, None), (8, 8), (4.0, 4), (6.5, 6.5)])
def test_second_budget(measured, average, wanted):
    space = search_space(*measured, WIDTHS, (4, 8))
    found = space.second_budget(average)
    assert found == (None if wanted is None else int(wanted * space.activation_elements))


def test_averages_that_are_not_exact_in_floating_point(measured):
    """A mean of exactly 4.1 is within the bound 4.1."""
    space = search_space(*measured, WIDTHS, (4, 8))
    for tenths in range(20, 81):
        exact = tenths * space.activation_elements // 10
        assert space.second_budget(tenths / 10) == exact


def test_float_activations_have_no_sites(measured):
    space = search_space(*measured, WIDTHS, None)
    assert space.activations == ()
    assert len(space.problem.loss) == 3


def test_widths_that_the_table_lacks(measured):
    with pytest.raises(UsageError, match=r"no 3-bit entry for 'w1' .it has 2, 4, 8.*--bits"):
        search_space(*measured, (2, 3), (8,))
    with pytest.raises(UsageError, match=r"no 5-bit entry for '.*--activation-bits"):
        search_space(*measured, WIDTHS, (5,))


def test_widths_are_sorted_and_unique(measured):
    space = search_space(*measured, (8, 2, 8), (8, 8))
    assert space.widths[0] == (2, 8)
    assert space.widths[-1] == (8,)
    sizes = np.diff([row for row in space.problem.size if len(row) == 2], axis=1)
    assert (sizes > 0).all()


def test_excluded_sites_of_a_full_table(measured):
    _, table = measured
    space = search_space(prepare(conv_net(), exclude=("w2", "^r1$")), table, WIDTHS, (8,))
    assert space.weights == ("w1", "w3")
    assert "r1" not in space.activations
