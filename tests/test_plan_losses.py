"""What sites of a plan really add to the loss: the same as the table that measures every width, on the same samples."""

import pytest
from cli.networks import conv_net, node, noise
from onnx import numpy_helper

from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.random_data import random_data
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.plan_losses import measure_plan
from amq_onnx.rewriting import prepare


@pytest.fixture(scope="module")
def measured():
    model = conv_net()
    prepared = prepare(model)
    data = random_data(model, 24, 0)
    return prepared, data, measure_sensitivity(prepared, data, (3, 5), (4,), SensitivityOptions(method="measured"))


def plan_of(table, widths):
    rows = table.activations
    activations = {name: ActivationPlan(4, rows[name].ranges[4]) for name in rows}
    return Plan(table.model, table.ranges, widths, activations, {}, table.expected_inputs, table.scales)


def test_each_site_alone_adds_what_the_table_says(measured):
    prepared, data, table = measured
    widths = {"w1": 3, "w2": 5, "w3": 3}
    found = measure_plan(prepared, plan_of(table, widths), data, table.loss)
    assert found.samples == 24
    assert set(found.losses) == {*widths, *table.activations}
    for name, bits in widths.items():
        assert found.losses[name] == {bits: pytest.approx(table.weights[name].loss[bits], rel=1e-4)}
    for name, row in table.activations.items():
        assert found.losses[name] == {4: pytest.approx(row.loss[4], rel=1e-4)}


def test_channels_of_their_own_width_are_between_those_alike(measured):
    prepared, data, table = measured
    plan = plan_of(table, {"w1": (3, 5) * 8, "w2": 5, "w3": 3})
    found = measure_plan(prepared, plan, data, table.loss)
    ((bits, (loss, _)),) = found.losses["w1"].items()
    assert bits == 5
    assert table.weights["w1"].loss[5][0] < loss < table.weights["w1"].loss[3][0]


def test_a_model_of_a_fixed_batch():
    """Its samples can't be told apart: each has a constant of its own."""
    model = conv_net(batch=8)
    model.graph.node[-1].output[0] = "same"
    model.graph.node.append(node("Add", "same each", "scores"))
    model.graph.initializer.append(numpy_helper.from_array(noise(9, 8, 10), "each"))
    prepared, data = prepare(model), random_data(model, 24, 0)
    table = measure_sensitivity(prepared, data, (3, 5), (4,), SensitivityOptions(method="measured"))
    found = measure_plan(prepared, plan_of(table, {"w1": 3, "w2": 5, "w3": 3}), data, table.loss)
    assert found.samples == data.samples()
    assert found.losses["w2"] == {5: pytest.approx(table.weights["w2"].loss[5], rel=1e-4)}


def test_a_few_samples_stand_for_all(measured):
    prepared, data, table = measured
    found = measure_plan(prepared, plan_of(table, {"w1": 3, "w2": 3, "w3": 3}), data, table.loss, samples=12)
    assert found.samples <= 12
    for name in ("w1", "w2", "w3"):
        value, error = found.losses[name][3]
        exact, _ = table.weights[name].loss[3]
        assert abs(value - exact) < 4 * error
