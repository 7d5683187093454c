"""What learned rounding is expected to leave: against learning itself, and the rounding that stands for it."""

from pathlib import Path

import numpy as np
import pytest
from cli.networks import conv_net, save

from amq_onnx.compiler import compile_plan
from amq_onnx.executor.interpreter import Executor
from amq_onnx.learned_losses import bounded, rounded_weight
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import open_data
from amq_onnx.model.file import read_model
from amq_onnx.model.random_data import random_data
from amq_onnx.pipeline import quantize, tuner_for
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.plan_losses import measure_plan
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.output_error import OutputError
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import prepare
from amq_onnx.traces import Trace
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.rounding import RoundingOptions
from amq_onnx.tuning.tuner import TuningOptions

MODELS = Path(__file__).resolve().parent.parent / "models"


def test_narrow_weights_are_rounded_one_after_another_where_their_outputs_are_known():
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((4, 30)).astype(np.float32)
    error = OutputError.from_rows(rng.standard_normal((1, 50, 30)).astype(np.float32) + 1, centred=False)
    encodings = weight_encodings(weight, 0, [3, 8]).encodings
    nearest = {bits: round_trip(weight, encoding) for bits, encoding in encodings.items()}
    for known, same in ((error, {8}), (None, {3, 8})):
        found = rounded_weight(weight, 0, encodings, known)
        assert {bits for bits in found if np.array_equal(found[bits], nearest[bits])} == same


def test_a_loss_is_no_more_than_that_of_random_directions():
    trace = Trace(trace=20.0, error=2.0, elements=100)
    assert bounded((0.5, 0.1), 4.0, trace) == (0.5, 0.1)
    assert bounded((0.9, 0.1), 4.0, trace) == pytest.approx((0.8, 0.08))


@pytest.fixture(scope="module")
def digits():
    prepared = prepare(read_model(MODELS / "digits_resnet.onnx"))
    return prepared, open_data(f"{MODELS}/digits.py:calibration", prepared.model).first(128)


def test_learning_leaves_what_is_expected_rather_than_what_rounding_to_nearest_loses(digits):
    """Of the weight that learning mends most, alone at 2 bits."""
    prepared, data = digits
    tables = {
        rounding: measure_sensitivity(prepared, data, (2, 8), (8,), SensitivityOptions(rounding=rounding))
        for rounding in ("nearest", "learned")
    }
    assert {table.rounding for table in tables.values()} == set(tables)
    expected, to_nearest = (
        {n: row.omega(2) for n, row in tables[kind].weights.items()} for kind in ("learned", "nearest")
    )
    name = min(expected, key=lambda weight: expected[weight] / to_nearest[weight])
    table = tables["learned"]
    activations = {n: ActivationPlan(8, row.ranges[8]) for n, row in table.activations.items()}
    widths = {n: 2 if n == name else 8 for n in table.weights}
    plan = Plan(table.model, table.ranges, widths, activations, {}, table.expected_inputs, table.scales)
    tuner = tuner_for(TuningOptions("rounding", RoundingOptions(steps=400, samples=128)), data, Checkpoint(None), None)
    learned = []

    def tune(model, quantized):
        learned.append(tuner(model, quantized, "", table.loss))
        return learned[0].values

    compile_plan(prepared, plan, tune=tune)
    ((left, _),) = measure_plan(prepared, plan, data, table.loss, learned=learned[0].weights).losses[name].values()
    ((lost, _),) = measure_plan(prepared, plan, data, table.loss).losses[name].values()
    assert lost == pytest.approx(to_nearest[name], rel=0.25)
    assert left < lost / 2
    assert abs(np.log(expected[name] / left)) < 0.7 * abs(np.log(to_nearest[name] / left))


def test_methods_that_measure_no_losses_know_no_other_rounding_than_to_nearest():
    model = conv_net()
    data = random_data(model, 16, 0)
    table = measure_sensitivity(
        prepare(model), data, (3, 8), (8,), SensitivityOptions(method="norm", rounding="learned", samples=8)
    )
    assert table.rounding == "nearest"


@pytest.mark.parametrize(
    ("tune", "asked", "found"),
    [("none", None, "nearest"), ("rounding", None, "learned"), ("rounding", "nearest", "nearest")],
)
def test_plans_are_chosen_by_the_rounding_that_follows(tune, asked, found, tmp_path):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    tuning = TuningOptions(tune, RoundingOptions(steps=20))
    options = SensitivityOptions(rounding=asked, samples=8)
    result = quantize(path, random_data(model, 16, 0), size=0.3, options=options, tune=tuning, details=True)
    assert result.sensitivity.rounding == found
    # What is measured beside the predictions is of the same rounding.
    prepared = prepare(model)
    weights = result.tuned.weights if found == "learned" else None
    again = measure_plan(prepared, result.plan, random_data(model, 16, 0), result.sensitivity.loss, learned=weights)
    assert result.measured.losses == again.losses


def test_without_scales_by_outputs_learning_is_expected_to_mend_as_much():
    model = conv_net()
    data = random_data(model, 32, 0)
    options = {"weigh_inputs": False, "samples": 16}
    nearest, learned = (
        measure_sensitivity(prepare(model), data, (2, 8), None, SensitivityOptions(rounding=rounding, **options))
        for rounding in ("nearest", "learned")
    )
    assert not nearest.scales and not learned.scales
    # Its inputs, behind Relu and a mean over the image, have most in common.
    assert learned.weights["w3"].omega(2) < 0.6 * nearest.weights["w3"].omega(2)


def test_learned_weights_have_the_codes_of_the_file(tmp_path):
    """What the losses of a plan are measured with is what the file holds, in the float graph's own shapes."""
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    tuning = TuningOptions("rounding", RoundingOptions(steps=20))
    result = quantize(path, random_data(model, 16, 0), size=0.3, tune=tuning)
    prepared = prepare(model)
    encodings = result.plan.encodings(prepared)
    assert set(result.tuned.weights) == set(result.plan.weights)
    for name, values in result.tuned.weights.items():
        np.testing.assert_allclose(round_trip(values, encodings[name]), values, rtol=1e-5, atol=1e-7)
        assert values.shape == Executor(prepared.model).initializers[name].shape
