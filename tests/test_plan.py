"""plan.json: what is written is what is read, and what it stands for in a model."""

import json
import string

import numpy as np
import pytest
from cli.networks import build, conv_constants, conv_net, node, noise
from hypothesis import given, settings
from hypothesis import strategies as st

from amq_onnx.errors import UsageError
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.rewriting import prepare

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
ends = st.floats(-1e30, 1e30)
activation_plans = st.builds(
    lambda bits, one, other: ActivationPlan(bits, (min(one, other), max(one, other))), st.integers(2, 8), ends, ends
)
plans = st.builds(
    Plan,
    st.text(string.hexdigits, min_size=64, max_size=64),
    st.sampled_from(["mse", "minmax", "percentile"]),
    st.dictionaries(
        names,
        st.integers(1, 8) | st.lists(st.integers(1, 8), min_size=2).map(tuple).filter(lambda row: len(set(row)) > 1),
    ),
    st.dictionaries(names, activation_plans),
    st.dictionaries(names, st.text(max_size=20)),
)


@settings(max_examples=40, deadline=None)
@given(plans)
def test_json_round_trip(plan):
    text = plan.to_json()
    again = Plan.from_json(text, "p")
    assert again == plan
    assert list(again.weights) == list(plan.weights)
    assert again.to_json() == text


def example():
    return Plan("f" * 64, "mse", {"w1": 8, "w2": 3}, {"image": ActivationPlan(8, (-1.5, 2.0))}, {"b": "too small"})


def test_json_is_a_line_a_site():
    """So that a diff of two plans shows the layers that changed."""
    lines = example().to_json().splitlines()
    assert '  "w2": 3' in lines
    assert '  "image": {"bits": 8, "range": [-1.5, 2.0]}' in lines
    body = json.loads(example().to_json())
    assert (body["format"], body["version"]) == ("amq-plan", 2)


def test_a_list_of_equal_widths_is_one_width():
    prepared = prepare(conv_net())
    one, other = (Plan("", "mse", {"w1": bits}, {}).encodings(prepared)["w1"] for bits in (4, (4,) * 16))
    assert (other.bits, other.widths) == (one.bits, None)
    np.testing.assert_array_equal(one.scale, other.scale)


@pytest.mark.parametrize(
    ("widths", "said"), [([], "empty"), ([4, 0], "0 bits"), ([4, 2.5], "2.5 bits"), ([[4], 3], "bits")]
)
def test_lists_that_are_no_widths(widths, said):
    body = json.loads(example().to_json())
    body["weights"]["w2"] = widths
    with pytest.raises(UsageError, match=rf"'p.json' gives site 'w2' .*{said}"):
        Plan.from_json(json.dumps(body), "p.json")


def test_channels_take_the_scales_of_their_widths():
    prepared = prepare(conv_net())
    widths = (2, 5, 3, 5) * 4
    mixed = Plan("", "mse", {"w1": widths}, {}).encodings(prepared)["w1"]
    assert (mixed.bits, mixed.axis, mixed.widths) == (5, 0, widths)
    for bits in (2, 3, 5):
        alone = Plan("", "mse", {"w1": bits}, {}).encodings(prepared)["w1"]
        channels = np.flatnonzero(np.array(widths) == bits)
        np.testing.assert_array_equal(mixed.scale[channels], alone.scale[channels])


def test_widths_for_another_number_of_channels():
    with pytest.raises(UsageError, match="weight 'w1' 3 widths, but it has 16 channels"):
        Plan("", "mse", {"w1": (2, 3, 4)}, {}).encodings(prepare(conv_net()))


def test_targets_that_cannot_mix():
    with pytest.raises(UsageError, match=r"channels of 'w1' .*'standard' can't write"):
        Plan("", "mse", {"w1": (2, 4) * 8}, {}).encodings(prepare(conv_net(), target="standard"))


def test_a_plan_without_left_float_is_complete():
    body = json.loads(example().to_json())
    del body["left_float"]
    assert Plan.from_json(json.dumps(body), "p").left_float == {}


@pytest.mark.parametrize("version", [0, 1, None, "2"])
def test_other_versions(version):
    body = json.loads(example().to_json()) | {"version": version}
    with pytest.raises(UsageError, match=r"'p.json' has version .* reads version 2"):
        Plan.from_json(json.dumps(body), "p.json")


@pytest.mark.parametrize(
    "change", [{"weights": ["w1"]}, {"weights": None}, {"activations": {"a": 8}}, {"left_float": 3}]
)
def test_fields_of_another_kind(change):
    body = json.loads(example().to_json()) | change
    with pytest.raises(UsageError, match=r"'p.json'"):
        Plan.from_json(json.dumps(body), "p.json")


def plan_of(prepared, bits, ranges="mse", activations=None):
    weights = {site.name: bits for site in prepared.sites.weights}
    return Plan("", ranges, weights, activations or {})


def test_encodings_follow_from_widths():
    prepared = prepare(conv_net())
    activations = {"image": ActivationPlan(8, (-2.0, 3.1)), "r1": ActivationPlan(4, (0.0, 7.5))}
    found = plan_of(prepared, 4, activations=activations).encodings(prepared)
    assert set(found) == {"w1", "w2", "w3", "image", "r1"}
    for name, axis in (("w1", 0), ("w2", 0), ("w3", 0)):
        encoding, values = found[name], conv_constants()[name]
        assert (encoding.bits, encoding.axis, encoding.scale.shape) == (4, axis, (values.shape[axis],))
        # Scales reach to the channel's largest weight or a little less far, never for half of it.
        largest = np.abs(values).reshape(len(values), -1).max(1)
        assert (encoding.scale <= largest / 7 * 1.05).all()
        assert (encoding.scale >= largest / 8 / 2).all()
    assert found["r1"].bits == 4
    assert float(found["r1"].scale) == pytest.approx(0.5)
    assert int(found["r1"].zero_point) == 0


def test_ranges_of_the_plan_are_used():
    prepared = prepare(conv_net())
    scales = {ranges: plan_of(prepared, 2, ranges).encodings(prepared)["w2"].scale for ranges in ("mse", "minmax")}
    assert (scales["mse"] < scales["minmax"]).any()
    assert not (scales["mse"] > scales["minmax"] * 1.0001).any()


def test_a_bias_too_large_for_its_scale_widens_it():
    """int32 bias codes are bias / (input scale * weight scale): tiny weights must not make them overflow."""
    weight = np.full((4, 8), 1e-9, np.float32)
    bias = np.array([1e6, 1.0, 0.0, -1e6], np.float32)
    model = build([node("Gemm", "x w b", "y", transB=1)], {"x": ["n", 8]}, {"y": ["n", 4]}, {"w": weight, "b": bias})
    prepared = prepare(model)
    found = plan_of(prepared, 8, activations={"x": ActivationPlan(8, (0.0, 1.0))}).encodings(prepared)
    codes = bias / (float(found["x"].scale) * found["w"].scale.astype(np.float64))
    assert np.abs(codes).max() < 2**31
    alone = plan_of(prepared, 8).encodings(prepared)["w"].scale
    assert (found["w"].scale >= alone).all()
    assert (found["w"].scale > alone).any()


@pytest.mark.parametrize("order", ["x z", "z x"])
def test_the_biases_of_all_readers_of_a_weight_have_room(order):
    constants = {"w": np.full((4, 8), 1e-9, np.float32), "b": np.full(4, 1e6, np.float32)}
    nodes = [node("Gemm", f"{name} w b", f"y{name}", transB=1) for name in order.split()]
    prepared = prepare(build(nodes, {"x": ["n", 8], "z": ["n", 8]}, {"yx": ["n", 4], "yz": ["n", 4]}, constants))
    ranges = {"x": ActivationPlan(8, (0.0, 1.0)), "z": ActivationPlan(8, (0.0, 100.0))}
    found = plan_of(prepared, 8, activations=ranges).encodings(prepared)
    for name in ranges:
        codes = constants["b"] / (float(found[name].scale) * found["w"].scale.astype(np.float64))
        assert np.abs(codes).max() < 2**31


def test_a_bias_of_another_shape_is_left_alone():
    constants = {"w": noise(1, 8, 4), "b": np.float32(3)}
    model = build([node("Gemm", "x w b", "y")], {"x": ["n", 8]}, {"y": ["n", 4]}, constants)
    prepared = prepare(model)
    found = plan_of(prepared, 8, activations={"x": ActivationPlan(8, (0.0, 1.0))}).encodings(prepared)
    assert found["w"].scale.shape == (4,)


@pytest.mark.parametrize(
    ("weights", "activations", "said"),
    [
        ({"nosuch": 4}, {}, "weight 'nosuch'"),
        ({"r1": 4}, {}, "weight 'r1'"),
        ({}, {"nosuch": ActivationPlan(8, (0.0, 1.0))}, "activation 'nosuch'"),
        ({}, {"w1": ActivationPlan(8, (0.0, 1.0))}, "activation 'w1'"),
    ],
)
def test_sites_that_the_model_lacks(weights, activations, said):
    with pytest.raises(UsageError, match=said):
        Plan("", "mse", weights, activations).encodings(prepare(conv_net()))
