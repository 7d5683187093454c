import numpy as np
import pytest
from small_graphs import f, model, node

from amq_onnx.executor.interpreter import Executor
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.rewriting import prepare, trainable
from amq_onnx.tuning.quantizers import find_biases, find_quantizers
from tuning.graphs import quantize, residual


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_bounds_scales_and_codes_of_weights_and_activations(bits):
    case = quantize(residual(), "scores", bits, bits)
    weights, activations = find_quantizers(case.quantized)
    assert set(weights) == {site.name for site in case.prepared.sites.weights}
    assert set(activations) == {site.name for site in case.prepared.sites.activations}
    tensors = Executor(case.quantized).initializers
    for site in weights.values():
        assert (site.low, site.high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        assert tensors[site.scale].shape == (tensors[site.tensor].shape[site.axis],)
    for site in activations.values():
        assert site.high - site.low == 2**bits - 1 and site.axis is None


def test_channels_with_widths_of_their_own_have_bounds_of_their_own():
    prepared = prepare(model([node("Conv", "x w", "y")], {"x": ["n", 2, 4, 4]}, {"y": None}, {"w": f(3, 2, 1, 1)}))
    encoding = Encoding(4, True, np.ones(3, np.float32), axis=0, widths=(2, 4, 3))
    weights, _ = find_quantizers(trainable(prepared, {"w": encoding}))
    assert weights["w"].low.reshape(-1).tolist() == [-2, -8, -4]
    assert weights["w"].high.reshape(-1).tolist() == [1, 7, 3]
    assert weights["w"].low.shape == (3, 1, 1, 1)


def test_a_clip_in_front_limits_the_scale():
    constants = {"w": f(4, 4), "v": f(4, 4), "zero": np.float32(0), "six": np.float32(6)}
    nodes = [node("MatMul", "x w", "h"), node("Clip", "h zero six", "c"), node("MatMul", "c v", "y")]
    prepared = prepare(model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, constants))
    encodings = {name: Encoding(4, True, np.ones(4, np.float32), axis=1) for name in ("w", "v")}
    encodings |= {"x": activation_encoding(-1, 1, 4), "c": activation_encoding(0, 5, 4)}
    _, activations = find_quantizers(trainable(prepared, encodings))
    limit = activations["c"].limit  # with which 6 is still rounded to the last code
    assert limit == pytest.approx(6 / 14.5, rel=1e-5) and np.rint(6 / limit) == 15
    assert activations["x"].limit == np.inf
    encodings["c"] = activation_encoding(0, 7, 4)  # with which it is not
    assert find_quantizers(trainable(prepared, encodings))[1]["c"].limit == np.inf


@pytest.mark.parametrize(
    ("operator", "number", "fixed"), [("Add", 0.5, True), ("Sub", 0.45, False), ("Mul", 0.5, False)]
)
def test_a_scale_of_which_a_shift_is_a_whole_number_is_fixed(operator, number, fixed):
    constants = {"w": f(4, 4), "v": f(4, 4), "c": np.float32(number)}
    nodes = [node("MatMul", "x w", "h"), node(operator, "h c", "s"), node("MatMul", "s v", "y")]
    prepared = prepare(model(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, constants))
    encodings = {"x": activation_encoding(-1, 1, 8), "s": activation_encoding(-12.8, 12.7, 8)}
    _, activations = find_quantizers(trainable(prepared, encodings))
    assert {name: site.fixed for name, site in activations.items()} == {"x": False, "s": fixed}


def test_biases_of_layers_and_what_is_added_to_products():
    constants = {"w": f(4, 4), "b": f(4), "k": f(4), "v": f(3, 4), "c": f(3)}
    nodes = [node("MatMul", "x w", "p"), node("Add", "p b", "h"), node("Add", "h k", "s")]
    nodes += [node("Gemm", "s v c", "y", transB=1)]
    found = find_biases(model(nodes, {"x": ["n", 4]}, {"y": ["n", 3]}, constants))
    assert found == {"b": ("h",), "c": ("y",)}
