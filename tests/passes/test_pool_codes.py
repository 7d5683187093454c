"""Average pools of codes: the graph afterwards, the same codes in onnxruntime, what runs, what stays."""

import numpy as np
import pytest
from onnx.shape_inference import infer_shapes
from small_graphs import assert_left_alone, f, model, node, operators, operators_run, outputs

from amq_onnx.passes.base import run
from amq_onnx.passes.pool_codes import AveragePoolsOnCodes

PARAMETERS = {"s": np.float32(0.05), "z": np.uint8(120), "t": np.float32(0.0317), "o": np.uint8(110)}
IMAGE = ["n", 5, 9, 9]


def between_codes(shape=None, *behind, results=("y",), **attributes):
    """x -> Q(s, z) -> DQ -> AveragePool -> Q(t, o) -> DQ -> y"""
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("AveragePool", "d", "p", **attributes),
        node("QuantizeLinear", "p t o", "r"),
        node("DequantizeLinear", "r t o", "y"),
        *behind,
    ]
    before = model(nodes, {"x": shape or IMAGE}, dict.fromkeys(results), PARAMETERS, opset=19)
    return infer_shapes(before)


def assert_same_codes(before, after, level):
    shape = [2 if isinstance(size.dim_param, str) and size.dim_param else size.dim_value
             for size in before.graph.input[0].type.tensor_type.shape.dim]  # fmt: skip
    feeds = {"x": 3 * f(*shape)}
    (first,), (second,) = outputs(before, feeds), outputs(after, feeds, level)
    apart = np.abs(np.rint((first - second) / PARAMETERS["t"]))
    assert first.std() > 0.1 and apart.max() <= 1 and apart.mean() < 0.01


THREE, PADDED = {"kernel_shape": [3, 3]}, {"pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        (THREE, None),
        (THREE | PADDED | {"count_include_pad": 1}, None),
        (THREE | {"strides": [2, 2], "auto_pad": "VALID"}, None),
        ({"kernel_shape": [2, 3], "pads": [0, 1, 1, 0], "count_include_pad": 1, "strides": [2, 1]}, None),
        ({"kernel_shape": [9, 9]}, None),
        ({"kernel_shape": [4], "strides": [2]}, ["n", 16, 30]),
        ({"kernel_shape": [2, 2, 2]}, ["n", 3, 4, 5, 6]),
    ],
    ids=["3x3", "padded", "strides", "sides apart", "all of an image", "one dimension", "three"],
)
def test_a_pool_is_a_depthwise_convolution(attributes, shape, tmp_path):
    before = between_codes(shape, **attributes)
    after = run(before, [AveragePoolsOnCodes()])
    assert "AveragePool" not in operators(after) and operators(after).count("Conv") == 1
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        assert_same_codes(before, after, level)
    found = set(operators_run(after, tmp_path)) - {"Transpose"}
    assert found == {"DequantizeLinear", "QLinearConv", "QuantizeLinear"}
    assert run(after, [AveragePoolsOnCodes()]) is after


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        (THREE | PADDED, None),
        (THREE | {"auto_pad": "SAME_UPPER"}, None),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, None),
        (THREE, ["n", "c", 6, 6]),
    ],
    ids=["fewer at the border", "the same size", "a window that is cut", "channels not known"],
)
def test_other_pools_are_computed_in_float(attributes, shape, tmp_path):
    before = between_codes(shape, **attributes)
    after = run(before, [AveragePoolsOnCodes()])
    assert operators(after) == [
        *("QuantizeLinear", "DequantizeLinear", "Clip", "AveragePool", "QuantizeLinear", "DequantizeLinear"),
    ]
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        assert_same_codes(before, after, level)
    assert "QLinearAveragePool" in operators_run(before, tmp_path)
    assert "QLinearAveragePool" not in operators_run(after, tmp_path)
    assert run(after, [AveragePoolsOnCodes()]) is after


def test_pools_of_one_size_share_their_numbers_but_for_zero_points():
    second = [node("DequantizeLinear", "r t o", "e"), node("AveragePool", "e", "p2", **THREE)]
    second += [node("QuantizeLinear", "p2 s z", "r2"), node("DequantizeLinear", "r2 s z", "y2")]
    after = run(between_codes(None, *second, results=("y", "y2"), **THREE), [AveragePoolsOnCodes()])
    assert operators(after).count("Conv") == 2
    assert len(after.graph.initializer) == len(PARAMETERS) + 4  # a shape, a scale and a zero point for each


@pytest.mark.parametrize(
    "before",
    [
        between_codes(None, node("Abs", "p", "a"), results=("y", "a"), **THREE),
        between_codes(results=("y", "p"), **THREE),
        model([node("AveragePool", "x", "y", **THREE)], {"x": IMAGE}, {"y": None}),
    ],
    ids=["a float reader", "an output", "floats"],
)
def test_pools_that_stay(before):
    assert_left_alone(AveragePoolsOnCodes(), before)
