"""sensitivity.json, and what its rows say of widths."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from cli.networks import build, conv_net, images, node, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from amq_onnx.calibration import tensors
from amq_onnx.errors import UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.head_losses import losses_on
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import METHODS, SensitivityOptions
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import find_heads
from amq_onnx.model.inputs import input_specs
from amq_onnx.model.random_data import random_data
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.rewriting import prepare
from amq_onnx.sample_choice import curved_first
from amq_onnx.sensitivity import ActivationRow, Sensitivity, WeightRow, parse_versioned, read_json_file
from amq_onnx.spectra import measure_spectra

finite = st.floats(-1e200, 1e200)
positive = st.floats(0, 1e200)
texts = st.text(st.characters(codec="utf-8"), max_size=10)
bits = st.integers(1, 8)
with_errors = st.tuples(positive, st.one_of(positive, st.just(float("inf"))))
weight_rows = st.builds(
    WeightRow,
    st.lists(st.integers(1, 50), min_size=1, max_size=4).map(tuple),
    finite,
    st.one_of(positive, st.just(float("inf"))),
    st.dictionaries(bits, positive, min_size=1),
)


@st.composite
def rows_with_channels(draw):
    channels = draw(st.integers(1, 5))
    numbers = st.lists(positive, min_size=channels, max_size=channels).map(tuple)
    errors = draw(st.dictionaries(bits, numbers, min_size=1))
    shape = (channels, draw(st.integers(1, 9)))
    return WeightRow(shape, draw(finite), draw(positive), dict.fromkeys(errors, 1.0), {}, draw(numbers), errors)


@st.composite
def loss_rows(draw):
    losses = draw(st.dictionaries(bits, with_errors, min_size=1))
    return WeightRow((3, 2), None, None, dict.fromkeys(losses, 1.5), losses)


@st.composite
def activation_rows(draw):
    perturbation = draw(st.dictionaries(bits, finite, min_size=1))
    ranges = {width: tuple(sorted(draw(st.tuples(finite, finite)))) for width in perturbation}
    elements = draw(st.integers(1, 10**9))
    if draw(st.booleans()):
        return ActivationRow(elements, draw(finite), draw(positive), ranges, perturbation)
    return ActivationRow(elements, None, None, ranges, {}, {width: draw(with_errors) for width in ranges})


tables = st.builds(
    Sensitivity,
    model=texts,
    method=st.sampled_from(METHODS),
    loss=st.dictionaries(texts, texts),
    samples=st.integers(1, 10**6),
    probes=st.integers(2, 1000),
    converged=st.booleans(),
    seed=st.integers(0, 2**32),
    ranges=st.sampled_from(["mse", "minmax", "percentile"]),
    weights=st.dictionaries(texts, st.one_of(weight_rows, rows_with_channels(), loss_rows())),
    activations=st.dictionaries(texts, activation_rows()),
    left_float=st.dictionaries(texts, texts),
)


@settings(max_examples=40, deadline=None)
@given(tables)
def test_json_round_trip(table):
    text = table.to_json()
    again = Sensitivity.from_json(text, "s")
    assert again == table
    assert again.to_json() == text
    assert list(again.weights) == list(table.weights)


def row(trace):
    return WeightRow((4, 5), trace, 0.0, {2: 8.0, 4: 0.5})


def test_omega_is_mean_trace_times_squared_error():
    assert row(60.0).elements == 20
    assert row(60.0).omega(2) == 3 * 8
    assert row(60.0).omega(4) == 3 * 0.5
    assert row(60.0).widths() == [2, 4]


def test_omega_is_the_loss_where_there_is_one():
    lossy = WeightRow((4, 5), None, None, {2: 8.0, 4: 0.5}, {2: (0.25, 0.1), 4: (-1e-18, 0.0)})
    assert (lossy.omega(2), lossy.omega(4), lossy.widths()) == (0.25, 0.0, [2, 4])
    active = ActivationRow(9, None, None, {8: (0.0, 1.0)}, {}, {8: (0.5, 0.1)})
    assert (active.omega(8), active.widths()) == (0.5, [8])
    table = Sensitivity("m", "hybrid", {}, 1, 2, True, 0, "mse", {"w": lossy}, {"a": active})
    assert table.negative_traces() == []


def test_losses_of_other_widths_are_refused():
    lossy = WeightRow((4, 5), None, None, {2: 8.0, 4: 0.5}, {2: (0.25, 0.1)})
    table = Sensitivity("m", "hybrid", {}, 1, 2, True, 0, "mse", {"w": lossy}, {})
    with pytest.raises(UsageError, match="different widths"):
        Sensitivity.from_json(table.to_json(), "s.json")


def test_negative_traces_count_by_their_size_and_are_named():
    assert row(-60.0).omega(2) == row(60.0).omega(2)
    active = ActivationRow(9, -1.0, 0.0, {8: (0.0, 1.0)}, {8: -0.25})
    assert active.omega(8) == 0.25
    table = Sensitivity("m", "hessian", {}, 1, 2, True, 0, "mse", {"w": row(-1.0), "v": row(0.0)}, {"a": active})
    assert table.negative_traces() == ["w", "a"]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": "amq-plan", "version": 1}'])
def test_files_of_another_kind(text):
    with pytest.raises(UsageError, match=r"'s.json' is not"):
        Sensitivity.from_json(text, "s.json")


def test_versions_and_formats():
    assert parse_versioned('{"format": "f", "version": 3, "a": 1}', "o", "f", 3) == {"a": 1}
    with pytest.raises(UsageError, match="'o' has version 2 of f; this amq reads version 3"):
        parse_versioned('{"format": "f", "version": 2}', "o", "f", 3)
    with pytest.raises(UsageError, match="'o' is not an f file"):
        parse_versioned('{"version": 3}', "o", "f", 3)


def test_json_nested_too_deep_is_an_error_of_the_file():
    with pytest.raises(UsageError, match="'o'"):
        parse_versioned("[" * 100_000, "o", "f", 3)


def test_reading_files(tmp_path):
    with pytest.raises(UsageError, match=r"gone.json' can't be read"):
        read_json_file(tmp_path / "gone.json")
    with pytest.raises(UsageError, match="can't be read"):
        read_json_file(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="is not a text file"):
        read_json_file(tmp_path / "binary")


def linear(outputs=5):
    constants = {"w": noise(1, 4, outputs)}
    return build([node("MatMul", "x w", "y")], {"x": ["n", 4]}, {"y": ["n", outputs]}, constants)


def measured(model, data, loss="squared", bits=(2, 4, 8), activation_bits=(4, 8), **options):
    chosen = {"method": "gauss-newton", "ranges": "minmax", "relative_error": 1e-9, "max_probes": 64} | options
    asked = SensitivityOptions(loss=loss, **chosen)
    return measure_sensitivity(prepare(model), data, bits, activation_bits, asked)


def test_a_linear_layer_with_squared_error_against_its_closed_form(tmp_path):
    """Loss ||xW - t||^2 / E||y||^2 (a half more or less): the trace is c * E||x||^2 * outputs, from two ratios."""
    model = linear()
    data = random_data(model, 64, 3)
    (batch,) = data.source()
    x = batch["x"].astype(np.float64)
    weight = noise(1, 4, 5).astype(np.float64)
    table = measured(model, data)
    mean_square = np.square(x @ weight).sum(1).mean()
    # Gauss-Newton of c * ||y - t||^2: 2c ||x||^2 for each of 5 outputs; of an input, 2c ||W||^2.
    ratio = np.square(x).sum(1).mean() * 5 / np.square(weight).sum()
    found = table.weights["w"].trace / table.activations["x"].trace
    assert found == pytest.approx(ratio, rel=0.15)
    unit = 2 * np.square(x).sum(1).mean() * 5 / mean_square
    assert any(table.weights["w"].trace == pytest.approx(share * unit, rel=0.15) for share in (1, 0.5))
    assert table.weights["w"].shape == (4, 5)
    assert table.activations["x"].elements == 4


def test_rows_do_not_depend_on_the_other_widths_asked_for():
    model = linear()
    data = random_data(model, 16, 0)
    few, many = measured(model, data, bits=(4,)), measured(model, data, bits=range(1, 9))
    assert few.weights["w"].squared_error[4] == many.weights["w"].squared_error[4]
    assert few.weights["w"].trace == many.weights["w"].trace


def test_squared_errors_are_of_the_quantized_weights():
    weight = noise(1, 4, 5).astype(np.float64)
    table = measured(linear(), random_data(linear(), 8, 0), bits=(8,))
    scale = np.abs(weight).max(0) / 127
    error = np.square(np.round(weight / scale) * scale - weight).sum()
    assert table.weights["w"].squared_error[8] == pytest.approx(error, rel=0.05)


def test_samples_and_loss_are_told():
    model = linear(outputs=3)
    table = measured(model, random_data(model, 40, 0), loss="auto", samples=12)
    assert table.samples == 12
    assert table.loss["y"].startswith("softmax")
    assert not json.loads(table.to_json())["converged"]


def test_integer_outputs_are_left_out_with_a_reason():
    nodes = [node("MatMul", "x w", "y"), node("ArgMax", "y", "k", axis=1, keepdims=0)]
    model = build(nodes, {"x": ["n", 4]}, {"k": (7, ["n"]), "y": ["n", 5]}, {"w": noise(1, 4, 5)})
    table = measured(model, random_data(model, 8, 0))
    assert table.loss["k"].startswith("left out")
    assert table.loss["y"].startswith("squared")


def with_channels(**more):
    return WeightRow((2, 3), 6.0, 0.1, {2: 5.0, 4: 0.5}, {}, (-1.5, 4.5), {2: (4.0, 1.0), 4: (0.3, 0.2)}, **more)


def test_omega_of_channels():
    """|trace of the channel| / its elements * its squared error, summed."""
    row = with_channels()
    assert row.omega(2) == pytest.approx(1.5 / 3 * 4 + 4.5 / 3 * 1)
    assert row.omega((2, 4)) == pytest.approx(1.5 / 3 * 4 + 4.5 / 3 * 0.2)
    assert row.omega((4, 4)) == row.omega(4)
    assert WeightRow((2, 3), -6.0, 0.1, {2: 5.0}).omega(2) == 5.0
    with pytest.raises(ValueError, match="not measured"):
        WeightRow((2, 3), 6.0, 0.1, {2: 5.0, 4: 0.5}).omega((2, 4))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"channel_trace": [1.0]}, "different numbers of channels"),
        ({"channel_trace": [1.0] * 4, "channel_error": {"2": [1.0] * 4, "4": [1.0] * 4}}, "different numbers"),
        ({"channel_error": {"2": [4.0, 1.0]}}, "other widths"),
        ({"channel_error": {"2": [4.0, -1.0], "4": [1.0, 1.0]}}, "below 0"),
        ({"channel_error": {"2": [4.0, float("inf")], "4": [1.0, 1.0]}}, "finite"),
        ({"channel_error": None}, "complete"),
    ],
)
def test_channels_that_do_not_fit(change, said):
    table = Sensitivity("f", "gauss-newton", {}, 1, 2, True, 0, "mse", {"w": with_channels()}, {})
    body = json.loads(table.to_json())
    body["weights"]["w"] |= change
    with pytest.raises(UsageError, match=f"'s.json'.*{said}"):
        Sensitivity.from_json(json.dumps(body), "s.json")


def test_channels_are_measured_where_asked():
    """They sum to the weight's own trace and errors."""
    model = build([node("Gemm", "x w", "y", transB=1)], {"x": ["n", 6]}, {"y": ["n", 4]}, {"w": noise(1, 4, 6)})
    options = SensitivityOptions(relative_error=0.5, max_probes=2, samples=8, channels=True, method="gauss-newton")
    row = measure_sensitivity(prepare(model), random_data(model, 8, 0), (2, 4), None, options).weights["w"]
    assert sum(row.channel_trace) == pytest.approx(row.trace, rel=1e-5)
    for bits, errors in row.channel_error.items():
        assert sum(errors) == pytest.approx(row.squared_error[bits], rel=1e-5)
        assert len(errors) == 4


def test_the_rivals_scores_are_squared_errors_times_an_eigenvalue_or_nothing():
    proto = conv_net()
    prepared = prepare(proto)
    executor = Executor(prepared.model)
    data = random_data(proto, 12, 0)
    widths, active = (2, 8), (4, 8)
    options = SensitivityOptions(samples=12)
    found = {
        method: measure_sensitivity(prepared, data, widths, active, replace(options, method=method))
        for method in ("norm", "eigenvalue", "hybrid")
    }
    heads, _ = find_heads(prepared.model)
    spectra = measure_spectra(executor, data, list(found["norm"].weights), heads, losses_on(executor, data, heads))
    for name, row in found["norm"].weights.items():
        top = spectra[name].values[0]
        for bits in widths:
            assert row.omega(bits) == row.squared_error[bits] == found["hybrid"].weights[name].squared_error[bits]
            assert found["eigenvalue"].weights[name].omega(bits) == pytest.approx(top * row.omega(bits), rel=0.06)
    # Ranges are those of every other method, so that widths are all that differs.
    for name, active_row in found["norm"].activations.items():
        assert active_row.ranges == found["hybrid"].activations[name].ranges
        values = torch.cat([executor.run(tensors(batch, executor), [name])[name] for batch in data.batches(4)]).numpy()
        for bits, (low, high) in active_row.ranges.items():
            error = round_trip(values, activation_encoding(low, high, bits)) - values
            assert active_row.omega(bits) == pytest.approx(np.square(error).sum() / 12, rel=0.08)
    assert Sensitivity.from_json(found["eigenvalue"].to_json(), "s") == found["eigenvalue"]


@pytest.mark.parametrize(
    ("importance", "order"),
    [
        ([1e-3, 4.0, 0.0, 1e-3, 5.0, 1e-3], [1, 4, 0, 2, 3, 5]),
        ([1.0] * 6, [0, 1, 2, 3, 4, 5]),
        ([0.0] * 6, [0, 1, 2, 3, 4, 5]),
        ([1e-3, 4.0, 0.0, 1e-3, 5.0, 1e-3, 100.0], [1, 4, 0, 2, 3, 5]),
    ],
    ids=["few tell", "all alike", "none", "of more samples"],
)
def test_samples_of_most_curvature_come_first(importance, order):
    given = images(6)
    data = Dataset(lambda: [{"image": given}], input_specs(conv_net()), "the data").first(6)
    found = curved_first(data, torch.tensor(importance))
    np.testing.assert_array_equal(np.concatenate([batch["image"] for batch in found.batches(4)]), given[order])
