"""Transposed convolutions as convolutions: the same numbers in onnxruntime, what runs, what stays."""

import numpy as np
import pytest
from onnx.shape_inference import infer_shapes
from small_graphs import assert_left_alone, assert_same_outputs, f, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.transposed_convolutions import TransposedConvolutions


def network(weight, shape, *between, results=("y",), bias=True, high=None, **attributes):
    """x -> ConvTranspose -> t -> nodes between -> Exp -> y"""
    last = between[-1].output[0] if between else "t"
    read = "x w b" if bias else "x w"
    nodes = [node("ConvTranspose", read, "t", **attributes), *between, node("Exp", last, "y")]
    constants = {"w": f(*weight) * np.float32(0.2)} | ({"b": f(weight[1])} if bias else {})
    constants |= {} if high is None else {"high": high}
    return infer_shapes(model(nodes, {"x": shape}, dict.fromkeys(results), constants))


@pytest.mark.parametrize(
    ("weight", "shape", "attributes"),
    [
        ((3, 4, 2, 2), ["n", 3, 5, 6], {"strides": [2, 2]}),
        ((3, 4, 2, 3), ["n", 3, "h", "w"], {"strides": [2, 3], "kernel_shape": [2, 3]}),
        ((3, 4, 4, 4), ["n", 3, 5, 6], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ((3, 1, 6, 4), ["n", 3, 5, "w"], {"strides": [2, 2], "pads": [1, 0, 2, 3], "auto_pad": "NOTSET"}),
        ((3, 4, 4, 1), ["n", 3, 5, 6], {"strides": [2, 1]}),
        ((3, 4, 16), ["n", 3, 9], {"strides": [8], "pads": [4, 4]}),
        ((3, 4, 2, 2, 4), ["n", 3, 3, 4, 5], {"strides": [2, 1, 2], "pads": [0, 0, 1, 0, 1, 1]}),
        ((3, 4, 3, 3), ["n", 3, 5, 6], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        ((3, 4, 3, 5), ["n", 3, "h", "w"], {"strides": [2, 3], "pads": [0, 0, 1, 1]}),
        ((3, 4, 4, 4), ["n", 3, 5, 6], {"strides": [2, 2], "pads": [1, 1, 2, 2], "output_padding": [1, 1]}),
        ((3, 1, 7), ["n", 3, 9], {"strides": [3]}),
    ],
    ids=[
        "k = s",
        "sides apart, free sizes",
        "k = 2 s",
        "pads apart",
        "one side",
        "one dimension",
        "three",
        "3 every 2",
        "3 every 2, 5 every 3",
        "padded behind",
        "7 every 3",
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_computes_the_same(weight, shape, attributes, bias):
    before = network(weight, shape, bias=bias, **attributes)
    after = run(before, [TransposedConvolutions(0)])
    assert "ConvTranspose" not in operators(after) and operators(after)[0] == "Conv"
    sizes = [{"n": 2, "h": 5, "w": 7}.get(size, size) for size in shape]
    assert_same_outputs(before, after, {"x": f(*sizes)}, 1e-6)
    assert run(after, [TransposedConvolutions(0)]) is after


@pytest.mark.parametrize(("size", "convolutions"), [(2, 1), (3, 4)])
def test_activations_are_computed_on_the_convolutions(size, convolutions):
    between = [node("Relu", "t", "r"), node("Clip", "r - high", "s")]
    before = network((3, 4, size, size), ["n", 3, 5, 6], *between, strides=[2, 2], high=np.float32(0.5))
    after = run(before, [TransposedConvolutions(0)])
    assert sorted(operators(after)[: 3 * convolutions]) == sorted(["Conv", "Relu", "Clip"] * convolutions)
    assert_same_outputs(before, after, {"x": f(2, 3, 5, 6)}, 1e-6)


@pytest.mark.parametrize(
    "before",
    [
        network((4, 2, 2, 2), ["n", 4, 5, 6], strides=[2, 2], group=2),
        network((3, 4, 1, 2), ["n", 3, 5, 6], strides=[2, 2]),
        network((3, 4, 2, 2), ["n", 3, 5, 6], strides=[1, 1]),
        network((3, 4, 2, 2), ["n", 3, 5, 6]),
        network((3, 4, 2, 2), ["n", 3, 5, 6], strides=[2, 2], dilations=[2, 2]),
        network((3, 4, 2, 2), ["n", 3, 5, 6], strides=[2, 2], output_padding=[1, 1]),
        network((3, 4, 2, 2), ["n", 3, 5, 6], strides=[2, 2], output_shape=[10, 12]),
        network((3, 4, 2, 2), ["n", 3, 5, 6], strides=[2, 2], auto_pad="SAME_UPPER"),
        network((3, 4, 2, 2), ["n", 3, 5, 6], strides=[2, 2], results=("y", "t")),
        network((3, 4, 2, 2), ["n", 3, 5, 6], node("Relu", "t", "r"), strides=[2, 2], results=("y", "r")),
    ],
    ids=["groups", "less than its stride", "no stride", "none given", "dilations", "padded output", "a given shape",
         "auto pad", "an output", "one behind a Relu"],
)  # fmt: skip
def test_others_stay(before):
    assert_left_alone(TransposedConvolutions(0), before)


def test_a_few_weights_are_not_made_several_convolutions():
    for outputs, found in ((32, 0), (64, 1)):
        before = network((32, outputs, 3, 3), ["n", 32, 5, 6], strides=[2, 2])
        assert ("ConvTranspose" not in operators(run(before, [TransposedConvolutions()]))) == found
