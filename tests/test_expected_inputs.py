"""Biases make up for the mean error of rounded weights: exactly, on the data they were measured on."""

import numpy as np
import pytest
from small_graphs import f, initializers, model, node, outputs

from amq_onnx.calibration import calibrate
from amq_onnx.errors import DataError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import Dataset
from amq_onnx.model.inputs import input_specs
from amq_onnx.passes.base import run
from amq_onnx.passes.correct_biases import CorrectBiases
from amq_onnx.plan import corrections, rounded_to_nearest
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import prepare

LAYERS = {
    "Conv": ([node("Conv", "x w b", "y", pads=[1, 2, 0, 1], strides=[2, 1])], (4, 6, 3, 3), 4),
    "Conv without a bias": ([node("Conv", "x w", "y", dilations=[2, 1])], (4, 6, 3, 3), 4),
    "Conv in groups": ([node("Conv", "x w b", "y", group=3, pads=[1, 1, 1, 1])], (9, 2, 3, 3), 9),
    "Conv, depthwise": ([node("Conv", "x w b", "y", group=6)], (6, 1, 3, 3), 6),
    "ConvTranspose": ([node("ConvTranspose", "x w b", "y", strides=[2, 2], pads=[1, 1, 0, 0])], (6, 5, 3, 3), 5),
    "ConvTranspose in groups": ([node("ConvTranspose", "x w b", "y", group=2)], (6, 5, 3, 3), 10),
    "Gemm": ([node("Flatten", "x", "l"), node("Gemm", "l w b", "y", transB=1)], (4, 150), 4),
    "Gemm of transposed data": (
        [node("Flatten", "x", "l"), node("Transpose", "l", "t"), node("Gemm", "t w b", "y", transA=1)],
        (150, 4),
        4,
    ),
    "MatMul and Add": ([node("MatMul", "x w", "m"), node("Add", "b m", "y")], (5, 4), 4),
}


def corrected(kind, bits):
    nodes, shape, channels = LAYERS[kind]
    constants = {"w": f(*shape)} | ({"b": f(channels)} if any("b" in item.input for item in nodes) else {})
    proto = model(nodes, {"x": ["n", 6, 5, 5]}, {"y": None}, constants)
    batches = [{"x": f(3, 6, 5, 5) + np.float32(0.5)}, {"x": f(2, 6, 5, 5)}]
    prepared = prepare(proto)
    data = Dataset(lambda: batches, input_specs(proto), "the data")
    seen = calibrate(Executor(prepared.model), data, [], ["y"], prepared.layers)
    (site,) = prepared.sites.weights
    encoding = weight_encodings(prepared.weight("w"), site.axis, [bits]).encodings[bits]
    rounded = prepare(proto).model
    next(tensor for tensor in rounded.graph.initializer if tensor.name == "w").raw_data = round_trip(
        prepared.weight("w"), encoding
    ).tobytes()
    shifts = corrections(prepared, rounded_to_nearest(prepared, {"w": encoding}, ["w"]), seen.expected_inputs)
    return proto, rounded, run(rounded, [CorrectBiases(shifts)]), {"x": np.concatenate([b["x"] for b in batches])}


def channel_means(proto, feeds, kind):
    (found,) = outputs(proto, feeds)
    channel = found.ndim - 1 if kind == "MatMul and Add" else 1
    return np.moveaxis(found, channel, 0).reshape(found.shape[channel], -1).mean(1)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_mean_of_every_output_channel_is_that_of_the_float_layer(kind):
    proto, rounded, mended, feeds = corrected(kind, 3)
    expected = channel_means(proto, feeds, kind)
    assert np.abs(channel_means(rounded, feeds, kind) - expected).max() > 1e-2
    np.testing.assert_allclose(channel_means(mended, feeds, kind), expected, atol=1e-4)
    assert run(mended, [CorrectBiases({"nothing": np.zeros(1, np.float32)})]) is mended


def test_a_bias_that_another_layer_reads_keeps_its_values_there():
    nodes = [node("Conv", "x w b", "y"), node("Conv", "x v b", "z")]
    before = model(
        nodes, {"x": ["n", 3, 4, 4]}, {"y": None, "z": None}, {"w": f(2, 3, 1, 1), "v": f(2, 3, 1, 1), "b": f(2)}
    )
    after = run(before, [CorrectBiases({"y": np.float32([1, 2])})])
    x = {"x": f(2, 3, 4, 4)}
    (y, z), (shifted, same) = outputs(before, x), outputs(after, x)
    np.testing.assert_array_equal(same, z)
    np.testing.assert_allclose(y - shifted, np.broadcast_to(np.float32([1, 2])[:, None, None], y.shape), atol=1e-5)
    assert set(initializers(after)) == {"w", "v", "b", "amq_m0"}


@pytest.mark.parametrize(
    "nodes",
    [
        [node("MatMul", "x w", "y")],
        [node("MatMul", "x w", "m"), node("Add", "m x", "y")],
        [node("Gemm", "x w b", "y", alpha=0.5)],
        [node("Gemm", "x w x", "y")],
    ],
    ids=["no Add", "Add of no constant", "scaled", "a bias that is computed"],
)
def test_layers_that_can_not_be_shifted_for_free_are_left_alone(nodes):
    constants = {"w": f(4, 4)} | ({"b": f(4)} if any("b" in item.input for item in nodes) else {})
    assert not prepare(model(nodes, {"x": [1, 4]}, {"y": None}, constants)).layers


def test_what_is_not_finite_is_named():
    proto = model([node("Log", "x", "l"), node("Gemm", "l w", "y")], {"x": ["n", 4]}, {"y": None}, {"w": f(4, 3)})
    prepared = prepare(proto)
    data = Dataset(lambda: [{"x": f(2, 4)}], input_specs(proto), "the data")
    with pytest.raises(DataError, match="'l', which a layer reads, is not finite on the data"):
        calibrate(Executor(prepared.model), data, [], ["y"], prepared.layers)
