"""Biases as integers: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import onnx
import pytest
from small_graphs import (
    IMAGE,
    assert_left_alone,
    assert_same_outputs,
    encoded,
    f,
    initializers,
    model,
    node,
)

from amq_onnx.passes.base import run
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.pack import QuantizeBiases


class TestQuantizeBiases:
    def conv(self, bias, weight_scale=(0.01, 0.02, 0.03, 0.04), **attributes):
        nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Sigmoid", "r", "y")]
        before = model(nodes, IMAGE, {"y": None}, {"w": f(4, 3, 3, 3), "b": bias})
        encodings = {"x": encoded(zero=128), "w": encoded(8, True, np.array(weight_scale), axis=0), "r": encoded()}
        return run(before, [InsertQDQ(encodings)])

    def test_the_bias_becomes_int32_in_units_of_both_scales(self):
        bias = f(4)
        before = self.conv(bias)
        after = run(before, [QuantizeBiases()])
        stored = [value for value in initializers(after).values() if value.dtype == np.int32]
        unit = np.float32(0.05) * np.array([0.01, 0.02, 0.03, 0.04], np.float32)
        np.testing.assert_array_equal(stored, [np.rint(bias.astype(np.float64) / unit)])
        # A code of 0.05 in front of Sigmoid may come out one higher or lower.
        assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)}, tolerance=0.02)
        assert run(after, [QuantizeBiases()]) is after

    @pytest.mark.parametrize("sizes", [["n", 3], ["n", 5, 3]])
    @pytest.mark.parametrize(("behind", "shape"), [(True, (4,)), (False, (4,)), (True, (1, 4))])
    def test_the_bias_that_an_add_adds_to_a_matmul(self, sizes, behind, shape):
        nodes = [node("MatMul", "x w", "m"), node("Add", "m b" if behind else "b m", "y")]
        bias = f(4)
        made = model(nodes, {"x": sizes}, {"y": None}, {"w": f(3, 4), "b": bias.reshape(shape)})
        before = run(
            onnx.shape_inference.infer_shapes(made),
            [InsertQDQ({"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=1)})],
        )
        after = run(before, [QuantizeBiases()])
        stored = [value for value in initializers(after).values() if value.dtype == np.int32]
        unit = np.float32(0.05) * np.full(4, 0.02, np.float32)
        np.testing.assert_array_equal(stored, [np.rint(bias.astype(np.float64) / unit)])
        assert_same_outputs(before, after, {"x": f(2, *sizes[1:])}, tolerance=1e-3)
        assert run(after, [QuantizeBiases()]) is after

    def test_an_add_that_adds_a_dimension_stays_float(self):
        made = model(
            [node("MatMul", "x w", "m"), node("Add", "m b", "y")], {"x": [3]}, {"y": None}, {"w": f(3, 4), "b": f(1, 4)}
        )
        encodings = {"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=1)}
        assert_left_alone(QuantizeBiases(), run(onnx.shape_inference.infer_shapes(made), [InsertQDQ(encodings)]))

    @pytest.mark.parametrize("case", ["read twice", "of activations", "not a vector", "not quantized"])
    def test_other_constants_that_are_added_stay_float(self, case):
        """As the mask of attention, which is added to products of activations."""
        nodes = [node("MatMul", "x w" if case != "of activations" else "x z", "m"), node("Add", "m b", "y")]
        inputs = {"x": ["n", 3]} | ({"z": [3, 4]} if case == "of activations" else {})
        made = {"y": None}
        if case == "read twice":
            nodes.append(node("Neg", "m", "o"))
            made["o"] = None
        constants = {"w": f(3, 4), "b": f(2, 4) if case == "not a vector" else f(4)}
        encodings = {"x": encoded(zero=128), "z": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=1)}
        del encodings["w" if case == "of activations" else "z"]
        if case == "not quantized":
            del encodings["w"]
        if case == "of activations":
            del constants["w"]
        before = run(model(nodes, inputs, made, constants), [InsertQDQ(encodings)])
        assert_left_alone(QuantizeBiases(), before)

    def test_a_bias_too_large_for_int32_stays_float(self):
        assert_left_alone(QuantizeBiases(), self.conv(np.full(4, 1e9, np.float32)))

    def test_without_a_quantized_weight_it_stays_float(self):
        before = model([node("Conv", "x w b", "y")], IMAGE, {"y": None}, {"w": f(4, 3, 3, 3), "b": f(4)})
        assert_left_alone(QuantizeBiases(), run(before, [InsertQDQ({"x": encoded()})]))
        assert_left_alone(QuantizeBiases(), before)

    @pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}])
    def test_a_scaled_gemm_stays_float(self, attributes):
        before = model(
            [node("Gemm", "x w b", "y", **attributes)], {"x": [2, 3]}, {"y": None}, {"w": f(3, 4), "b": f(4)}
        )
        encodings = {"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=1)}
        assert_left_alone(QuantizeBiases(), run(before, [InsertQDQ(encodings)]))

    @pytest.mark.parametrize("shape", [(1,), (2, 4), ()])
    def test_a_bias_that_is_broadcast_stays_float(self, shape):
        before = model([node("Gemm", "x w b", "y")], {"x": [2, 3]}, {"y": None}, {"w": f(3, 4), "b": f(*shape)})
        encodings = {"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=1)}
        assert_left_alone(QuantizeBiases(), run(before, [InsertQDQ(encodings)]))

    def test_biases_of_two_runs_do_not_share_names(self):
        nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Conv", "r v d", "y")]
        constants = {"w": f(4, 3, 3, 3), "b": f(4), "v": f(2, 4, 1, 1), "d": f(2)}
        before = model(nodes, IMAGE, {"y": None}, constants)
        first = {"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=0)}
        second = {"r": encoded(scale=0.1), "v": encoded(8, True, np.full(2, 0.03), axis=0)}
        half = run(before, [InsertQDQ(first), QuantizeBiases()])
        whole = run(half, [InsertQDQ(second), QuantizeBiases()])
        direct = run(before, [InsertQDQ({**first, **second}), QuantizeBiases()])
        assert_same_outputs(whole, direct, {"x": f(2, 3, 6, 6)})
