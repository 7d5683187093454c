"""Convolutions for outputs as products: the same numbers in onnxruntime, the kernels that run, what stays."""

import numpy as np
import pytest
from onnx.shape_inference import infer_shapes
from small_graphs import assert_left_alone, assert_same_outputs, f, model, node, operators, operators_run, outputs

from amq_onnx.passes.base import run
from amq_onnx.passes.output_products import OutputProducts
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import lower, prepare, simulate

LARGE = f(130_000)  # with which some nodes more take nothing that counts


def network(weight, shape, *behind, bias=True, large=LARGE, results=("y",), constants=None, **attributes):
    """x -> Conv -> y; a large constant beside it"""
    nodes = [node("Conv", "x w b" if bias else "x w", "y", **attributes), node("ReduceSum", "large", "z"), *behind]
    held = {"w": f(*weight) * np.float32(0.2), "large": large} | ({"b": f(weight[0])} if bias else {})
    return infer_shapes(model(nodes, {"x": list(shape)}, dict.fromkeys((*results, "z")), held | (constants or {})))


PADDED = {"pads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("weight", "shape", "attributes"),
    [
        ((5, 16, 1, 1), ["n", 16, 5, 6], {}),
        ((3, 16, 3, 3), ["n", 16, 5, 6], PADDED),
        ((3, 16, 3, 3), ["n", 16, "h", "w"], PADDED),
        ((3, 16, 3, 3), ["n", 16, 5, 6], {}),
        ((2, 16, 3, 1), ["n", 16, 5, 6], {"pads": [0, 0, 2, 0]}),
        ((2, 16, 1, 3), ["n", 16, 5, 6], {"pads": [0, 1, 0, 0]}),
        ((1, 16, 4, 5), ["n", 16, 5, 6], {"pads": [1, 2, 2, 2], "strides": [1, 1], "dilations": [1, 1]}),
        ((300, 16, 1), ["n", 16, 9], {}),
        ((4, 20, 7), ["n", 20, 9], {"pads": [3, 3]}),
        ((1, 18, 3, 3, 3), ["n", 18, 4, 5, 6], {"pads": [1, 1, 0, 1, 1, 1]}),
    ],
    ids=[
        *(
            "1x1",
            "3x3",
            "free sizes",
            "valid",
            "one side",
            "columns",
            "even",
            "one dimension, 1",
            "one dimension",
            "three",
        ),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_added_up(weight, shape, attributes, bias):
    before = network(weight, shape, bias=bias, **attributes)
    after = run(before, [OutputProducts(["y"])])
    kinds = operators(after)
    sides = sum(size > 1 for size in weight[2:])
    assert "Conv" not in kinds and kinds.count("MatMul") == 1
    assert kinds.count("Slice") == sum(size for size in weight[2:] if size > 1)
    assert kinds.count("Pad") == (any(attributes.get("pads", [])) and sides > 0)
    sizes = [{"n": 2, "h": 5, "w": 6}.get(size, size) for size in shape]
    assert_same_outputs(before, after, {"x": f(*sizes)}, 1e-5)
    assert run(after, [OutputProducts(["y"])]) is after


def test_layers_share_what_they_read():
    """A head that all levels of a detector have."""
    more = [node("Conv", "y2 w b", "u", **PADDED), node("Conv", "y2 w b", "v", pads=[1, 1, 1, 0]),
            node("Relu", "x", "y2")]  # fmt: skip
    before = network((3, 16, 3, 3), ["n", 16, 5, 6], more[2], *more[:2], results=("y", "u", "v"), **PADDED)
    after = run(before, [OutputProducts(["y", "u", "v"])])
    assert operators(after).count("MatMul") == 3
    held = {tensor.name: tuple(tensor.dims) for tensor in after.graph.initializer if len(tensor.dims) < 3}
    assert held["w"] == (16, 27) and [size for size in held.values() if size == (27,)] == [(27,)]
    assert_same_outputs(before, after, {"x": f(2, 16, 5, 6)}, 1e-5)
    other = network((3, 16, 3, 3), ["n", 16, 5, 6], more[2], more[0], results=("y", "u"), **PADDED)
    assert_left_alone(OutputProducts(["y"]), other)


@pytest.mark.parametrize(
    "before",
    [
        network((3, 16, 3, 3), ["n", 16, 5, 6], strides=[2, 1], **PADDED),
        network((3, 16, 3, 3), ["n", 16, 5, 6], dilations=[1, 2], **PADDED),
        network((4, 16, 3, 3), ["n", 32, 5, 6], group=2, **PADDED),
        network((3, 16, 3, 3), ["n", 16, 5, 6], pads=[2, 1, 1, 1]),
        network((3, 16, 3, 3), ["n", 16, 5, 6], auto_pad="SAME_UPPER"),
        network((3, 12, 1, 1), ["n", 12, 5, 6]),
        network((4, 16, 3, 3), ["n", 16, 5, 6], **PADDED),
        network((3, 16, 7, 7), ["n", 16, 7, 8]),
        network((3, 16, 3, 3), ["n", 16, 5, 6], large=LARGE[:9], **PADDED),
        network((3, 16, 3, 3), ["n", 16, 5, 6], node("Erf", "w", "e"), results=("y", "e"), **PADDED),
    ],
    ids=["strides", "dilations", "groups", "a larger image", "auto pad", "few inputs", "many outputs", "many positions",
         "small network",
         "a shared weight"],
)  # fmt: skip
def test_others_stay(before):
    assert_left_alone(OutputProducts(["y"]), before)
    assert_left_alone(OutputProducts([]), before)


@pytest.mark.parametrize(("kernel", "bits"), [(1, 8), (3, 8), (3, 3)])
def test_outputs_of_integer_kernels_are_not_rounded(kernel, bits, tmp_path):
    """x -> Conv -> Relu -> Conv -> y, as super-resolution ends: no float convolution runs, and y is no code."""
    nodes = [node("Conv", "x w0 b0", "c", **PADDED), node("Relu", "c", "r")]
    nodes.append(node("Conv", "r w b", "y", pads=[kernel // 2] * 4))
    constants = {"w0": f(16, 3, 3, 3) * np.float32(0.3), "b0": f(16), "b": f(3)}
    constants["w"] = f(3, 16, kernel, kernel) * np.float32(0.2)
    constants["large"], nodes = LARGE, [*nodes, node("ReduceSum", "x", "t"), node("Mul", "large t", "z")]
    proto = infer_shapes(model(nodes, {"x": ["n", 3, 8, 9]}, {"y": None, "z": None}, constants))
    prepared = prepare(proto)
    encodings = {
        site.name: weight_encodings(prepared.weight(site.name), site.axis, [bits]).encodings[bits]
        for site in prepared.sites.weights
    }
    encodings |= {site.name: activation_encoding(-3, 3, 8) for site in prepared.sites.activations}
    simulated = simulate(prepared, encodings)
    file = lower(prepared, simulated, encodings)
    found = operators_run(file, tmp_path)
    assert "Conv" not in found and "QLinearConv" in found and {"MatMulIntegerToFloat", "QGemm"} & set(found)
    assert_same_outputs(simulated, file, {"x": f(2, 3, 8, 9)}, 0.05)
    (made,) = outputs(file, {"x": f(2, 3, 8, 9)})[:1]
    assert len(np.unique(made)) > 300 and "y" not in prepared.sites.left_float
