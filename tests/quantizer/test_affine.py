"""Affine rounding is onnxruntime's, bit for bit."""

from contextlib import nullcontext

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper

from amq_onnx.quantizer.affine import dequantize, quantize, round_trip
from amq_onnx.quantizer.encoding import Encoding, code_range


def runtime_session(signed, axis):
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("s", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("z", kind, None),
    ]
    outputs = [helper.make_tensor_value_info("q", kind, None), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


SESSIONS = {(signed, axis): runtime_session(signed, axis) for signed in (True, False) for axis in (None, 0, 1, 2)}


def assert_equal_to_runtime(values, encoding):
    zero = np.full(encoding.scale.shape, encoding.zero_point, np.int8 if encoding.signed else np.uint8)
    session = SESSIONS[encoding.signed, encoding.axis]
    codes, reals = session.run(None, {"x": values, "s": encoding.scale, "z": zero})
    ours = quantize(values, encoding)
    np.testing.assert_array_equal(ours, codes.astype(np.int32))
    np.testing.assert_array_equal(dequantize(ours, encoding).view(np.int32), reals.view(np.int32))


def encoding(signed, scale, zero=0, axis=None, bits=8):
    return Encoding(bits, signed, np.asarray(scale, np.float32), zero, axis)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("zero", [0, 3, 127])
def test_every_half_and_its_neighbours_round_as_onnxruntime(signed, zero):
    scale = np.float32(0.1)  # not a power of two: division and product with the inverse differ
    halves = ((np.arange(-300, 300) + np.float32(0.5)) * scale).astype(np.float32)
    values = np.concatenate([halves, np.nextafter(halves, np.float32(9e9)), np.nextafter(halves, np.float32(-9e9))])
    assert_equal_to_runtime(values, encoding(signed, scale, zero))


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_random_tensors_round_as_onnxruntime(signed, axis):
    rng = np.random.default_rng(axis)
    values = (rng.standard_normal((5, 6, 7)) * 10 ** rng.uniform(-3, 3, (5, 6, 7))).astype(np.float32)
    scale = 0.37 if axis is None else rng.uniform(1e-4, 2, values.shape[axis])
    assert_equal_to_runtime(values, encoding(signed, scale, 0 if axis is not None else 11, axis))


@pytest.mark.parametrize("signed", [True, False])
def test_huge_and_tiny_values_saturate_as_in_onnxruntime(signed):
    largest = np.finfo(np.float32).max
    values = np.array(
        [largest, -largest, 3e9, -3e9, 2.0**31, -(2.0**31), 2.0**63, 1e-45, -1e-45, 0.0, -0.0], np.float32
    )
    for scale in (1.0, 1e-3, 1e30):
        assert_equal_to_runtime(values, encoding(signed, scale, 5))


@settings(max_examples=150, deadline=None)
@given(
    arrays.arrays(np.float32, st.integers(1, 20), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(2.0**-20, 1e4, width=32),
    st.booleans(),
    st.integers(0, 127),
)
def test_any_numbers_round_as_onnxruntime(values, scale, signed, zero):
    assert_equal_to_runtime(values, encoding(signed, scale, zero))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_codes_fill_exactly_the_range_of_the_width(bits, signed):
    low, high = code_range(bits, signed)
    assert high - low == 2**bits - 1
    wide = np.linspace(-300, 300, 2001, dtype=np.float32)
    zero = 0 if signed else high // 2
    codes = quantize(wide, encoding(signed, 1.0, zero, bits=bits))
    np.testing.assert_array_equal(np.unique(codes), np.arange(low, high + 1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_channel_keeps_to_its_own_width(axis):
    widths = (2, 8, 5)
    wide = 200 * np.random.default_rng(1).standard_normal((3, 3, 3)).astype(np.float32)
    scales = np.array([1.0, 0.5, 2.0], np.float32)
    codes = quantize(wide, Encoding(8, True, scales, axis=axis, widths=widths))
    for channel, bits in enumerate(widths):
        alone = Encoding(bits, True, scales[channel])
        np.testing.assert_array_equal(np.take(codes, channel, axis), quantize(np.take(wide, channel, axis), alone))


@pytest.mark.parametrize("widths", [(4, 4), (4, 3, 2), (4, 0), (5, 4), (3, 2)])
def test_widths_that_do_not_fit_the_channels_are_refused(widths):
    with pytest.raises(ValueError, match="channels") if widths != (4, 4) else nullcontext():
        Encoding(4, True, np.ones(2, np.float32), axis=0, widths=widths)
    with pytest.raises(ValueError, match="axis"):
        Encoding(4, True, np.float32(1), widths=widths[:1])


def test_round_trip_repeated_changes_nothing():
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    coding = encoding(False, 0.013, 77, bits=7)
    once = round_trip(values, coding)
    np.testing.assert_array_equal(round_trip(once, coding), once)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bits": 0}, {"bits": 17}, {"scale": 0.0}, {"scale": -1.0}, {"scale": np.nan}, {"scale": np.inf},
        {"scale": [1.0, 2.0]}, {"axis": 0}, {"zero": 16}, {"zero": -1}, {"scale": [1.0, 0.0], "axis": 0},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_encodings_are_refused(arguments):
    with pytest.raises(ValueError, match=r"."):
        encoding(**{"signed": False, "scale": 1.0, "bits": 4, **arguments})
