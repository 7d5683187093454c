"""What a width costs in the search is what it costs in the file."""

import itertools

import numpy as np
import pytest
from cli.networks import CLASSES, build, conv_constants, conv_net, conv_nodes, node, scaled

from amq_onnx.allocation import solve
from amq_onnx.compiler import Compiler, compile_plan
from amq_onnx.costs import search_space
from amq_onnx.errors import UsageError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.file import model_bytes
from amq_onnx.model.random_data import random_data
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


# Widths of channels.


@pytest.fixture(scope="module")
def channels():
    model = build(
        [*conv_nodes()[:-1], node("Gemm", "flat w3 b3", "scores")],
        {"image": ["n", 3, 8, 8]},
        {"scores": ["n", CLASSES]},
        conv_constants()
        | {"w2": scaled(3, 96, 16, 3, 3), "b2": np.zeros(96, np.float32), "w3": scaled(5, 96, CLASSES)},
    )
    prepared = prepare(model)
    options = SensitivityOptions(relative_error=0.5, max_probes=2, samples=8, channels=True, method="gauss-newton")
    return prepared, measure_sensitivity(prepared, random_data(model, 8, 0), range(2, 9), (8,), options)


def test_every_mix_takes_the_bytes_that_the_search_says(channels):
    """Graphs with each option of each weight, the others at some width, differ by what the search says."""
    prepared, table = channels
    rests = set()
    compiler = Compiler(prepared, table, range(2, 9), (8,), channels=True)
    space = compiler.space
    assert max(map(len, space.widths)) > 20
    for index, row in enumerate(space.widths[:3]):
        for option in range(0, len(row), 3):
            choice = [1 + site for site in range(len(space.widths))]
            choice = [min(pick, len(widths) - 1) for pick, widths in zip(choice, space.widths, strict=True)]
            choice[index] = option
            allocation = space.problem.allocation(choice)
            rests.add(compiler.build(space.plan(allocation)).graph.ByteSize() - space.bytes(allocation))
    assert len(rests) == 1


def test_losses_of_mixes_are_the_sums_of_their_channels(channels):
    prepared, table = channels
    space = search_space(prepared, table, range(2, 9), (8,), channels=True)
    for name, row, losses in zip(space.weights, space.widths, space.problem.loss, strict=False):
        assert list(losses) == [table.weights[name].omega(option) for option in row]
        assert [option for option in row if isinstance(option, int)] == list(range(2, 9)) == list(row[:7])


def test_channels_never_lose_to_layers(channels):
    """With the same table and budget the plan of channels perturbs less, or as much; its file keeps the budget."""
    prepared, table = channels
    layers = Compiler(prepared, table, range(2, 9), (8,))
    mixed = Compiler(prepared, table, range(2, 9), (8,), channels=True)
    assert mixed.least_bytes == layers.least_bytes
    better = 0
    for budget in np.linspace(1.02 * layers.least_bytes, 2.2 * layers.least_bytes, 8).astype(int).tolist():
        one, two = layers.best(budget), mixed.best(budget)
        assert two.bytes == two.predicted_bytes <= budget
        assert two.allocation.loss <= one.allocation.loss * (1 + 1e-12)
        better += two.allocation.loss < 0.98 * one.allocation.loss
    assert better >= 2


def test_a_size_of_the_frontier_gives_its_plan(measured):
    """What several weights may share is never held against a plan that fits to the byte."""
    compiler = Compiler(*measured, WIDTHS, (8,))
    for point in compiler.frontier(50):
        found = compiler.best(point.bytes)
        assert found.allocation.loss <= point.perturbation * (1 + 1e-12)


def test_a_table_without_channels(measured):
    with pytest.raises(UsageError, match=r"no channels of 'w1'.*--granularity channel"):
        search_space(*measured, WIDTHS, (8,), channels=True)


def compiled(nodes, constants, activation_bits, average):
    """Images quantized with weights at 8 bits and activations at `average`: what was prepared, and the file."""
    proto = build(nodes, {"x": ["n", 3, 6, 6]}, {"y": ["n", 5, 1, 1]}, constants)
    prepared = prepare(proto)
    options = SensitivityOptions(relative_error=0.5, max_probes=2, samples=8)
    table = measure_sensitivity(prepared, random_data(proto, 16, 0), (8,), activation_bits, options)
    return prepared, Compiler(prepared, table, (8,), activation_bits, activation_average=average).best(10**6)


@pytest.mark.parametrize("average", [4, 6, 8])
def test_hard_sigmoids_on_codes_are_paid_for(average):
    """At 4 bits a hard sigmoid is computed in float, at 8 on codes, which takes more nodes."""
    nodes = [
        node("Conv", "x w b", "c"),
        node("HardSwish", "c", "s"),
        node("GlobalAveragePool", "s", "p"),
        node("Conv", "p u", "g"),
        node("HardSigmoid", "g", "gate"),
        node("Mul", "s gate", "m"),
        node("Conv", "m v", "d"),
        node("Softmax", "d", "y", axis=1),
    ]
    constants = {"w": scaled(1, 4, 3, 3, 3), "u": scaled(2, 4, 4, 1, 1), "v": scaled(3, 5, 4, 4, 4)}
    constants |= {"w": 6 * constants["w"], "b": np.zeros(4, np.float32)}
    _, found = compiled(nodes, constants, (4, 8), average)
    clips = sum(item.op_type == "Clip" for item in found.model.graph.node)
    assert found.bytes == found.predicted_bytes
    if average == 8:
        assert clips == 2 and not any(item.op_type == "HardSigmoid" for item in found.model.graph.node)


@pytest.mark.parametrize("average", [4, 6, 8])
@pytest.mark.parametrize("shared", [True, False])
def test_factors_and_shifts_that_quantizers_take_over_are_paid_for(average, shared):
    """A shift is a whole number of steps at 8 bits, not at 4, so that files of the two differ in more than codes."""
    nodes = [
        node("Conv", "x w", "c"),
        node("HardSwish", "c", "s"),
        node("Mul", "s k", "m"),
        node("Add", "m shift", "a"),
        node("GlobalAveragePool", "a", "p"),
        node("Conv", "p u", "g"),
        node("HardSigmoid", "g", "gate"),
        node("Mul", "a gate", "o"),
        node("Mul", "o k" if shared else "o l", "r"),
        node("Conv", "r v", "d", pads=[1, 1, 1, 1]),
        node("Relu", "d", "e"),
        node("Softmax", "e", "y", axis=1),
    ]
    constants = {"w": 6 * scaled(1, 4, 3, 3, 3), "u": scaled(2, 4, 4, 1, 1), "v": scaled(3, 5, 4, 6, 6)}
    constants |= {"k": np.float32(0.7), "l": np.float32([0.7]), "shift": np.float32([-0.3])}
    _, found = compiled(nodes, constants, (4, 8), average)
    assert found.bytes == found.predicted_bytes
    adds = sum(item.op_type == "Add" for item in found.model.graph.node)
    assert adds == (0 if found.plan.activations["a"].bits == 8 else 1)


@pytest.mark.parametrize("average", [3, 6, 8])
@pytest.mark.parametrize("shift", [-0.3, 0.3])
def test_bounds_of_codes_are_paid_for(average, shift):
    """A Relu behind which a number is added has a lower bound, which codes of 8 bits have, and those of 3 don't."""
    nodes = [
        node("Conv", "x w", "c"),
        node("Relu", "c", "r"),
        node("Mul", "r k", "m"),
        node("Add", "m shift", "a"),
        node("Conv", "a v", "d", pads=[1, 1, 1, 1]),
        node("Relu", "d", "e"),
        node("Softmax", "e", "y", axis=1),
    ]
    constants = {"w": scaled(1, 4, 3, 3, 3), "v": scaled(3, 5, 4, 6, 6)}
    constants |= {"k": np.float32(0.7), "shift": np.float32(shift)}
    prepared, found = compiled(nodes, constants, (3, 8), average)
    assert found.bytes == found.predicted_bytes
    floats = {item.op_type for item in found.model.graph.node} & {"Add", "Relu"}
    assert not floats and prepared.code_operators.levels == {"a": np.float32(shift)}
