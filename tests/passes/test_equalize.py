"""Channels are evened out, and the outputs stay the same bit for bit."""

import numpy as np
import pytest
from small_graphs import assert_same_outputs, f, initializers, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.equalize import EqualizeChannels

UNEVEN = np.float32([0.01, 0.3, 1, 50, 2, 7, 0.002, 1])


def weights(*shape, channels=0, factors=UNEVEN):
    """Normal numbers whose channels along `channels` differ by `factors`."""
    view = [1] * len(shape)
    view[channels] = -1
    return f(*shape) * factors.reshape(view)


FIRST = {"w": weights(8, 3, 3, 3), "b": f(8) * UNEVEN}
LAST = {"v": weights(5, 8, 3, 3, channels=1, factors=1 / UNEVEN), "c": f(5)}
BETWEEN = {
    "nothing": [],
    "Relu": [("Relu", "")],
    "LeakyRelu and pooling": [("LeakyRelu", ""), ("MaxPool", "")],
    "PRelu and pooling": [("PRelu", "slope"), ("AveragePool", "")],
    "depthwise": [("Relu", ""), ("Conv", "d e"), ("Relu", ""), ("Conv", "d2"), ("Relu", "")],
}
ATTRIBUTES = {
    "MaxPool": {"kernel_shape": [3, 3], "pads": [1, 1, 0, 0]},
    "AveragePool": {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0], "count_include_pad": 1},
    "Conv": {"group": 8, "pads": [1, 1, 1, 1]},
}


def network(between, last, constants, **more):
    """Conv (uneven outputs) -> between -> last, on images [n, 3, 8, 8]."""
    nodes, name = [node("Conv", "x w b", "t0")], "t0"
    for number, (operator, parameters) in enumerate(between, 1):
        nodes.append(node(operator, f"{name} {parameters}", f"t{number}", **ATTRIBUTES.get(operator, {})))
        name = f"t{number}"
    nodes += last(name)
    return model(nodes, {"x": ["n", 3, 8, 8]}, {"y": None}, {**FIRST, **constants}, **more)


def conv(name):
    return [node("Conv", f"{name} v c", "y")]


def constants_of(kind):
    used = " ".join(parameters for _, parameters in BETWEEN[kind])
    known = {"slope": f(8, 1, 1), "d": weights(8, 1, 3, 3), "e": f(8), "d2": f(8, 1, 3, 3)}
    return {name: value for name, value in known.items() if name in used.split()} | LAST


def unevenness(proto):
    """How far apart what makes the channels of the first Conv and what reads them in the last are, in powers of two."""
    held = initializers(proto)
    made = np.maximum(np.abs(held["w"]).max((1, 2, 3)), np.abs(held["b"]))
    return np.ptp(np.log2(made)), np.ptp(np.log2(made / np.abs(held["v"]).max((0, 2, 3))))


@pytest.mark.parametrize("kind", BETWEEN)
def test_channels_are_alike_afterwards_and_outputs_are_the_same(kind):
    before = network(BETWEEN[kind], conv, constants_of(kind))
    after = run(before, [EqualizeChannels()])
    assert operators(after) == operators(before)
    # The kernels may sum in another order for other bytes, but powers of two round alike.
    assert_same_outputs(before, after, {"x": f(2, 3, 8, 8)})
    if kind != "depthwise":  # its own channels are evened out with the last Conv's as well
        assert unevenness(before)[1] > 5
        assert unevenness(after)[1] <= 2.0001
    changed = {name for name, value in initializers(after).items() if (value != initializers(before)[name]).any()}
    assert changed >= {"w", "b", "v"} | ({"e"} if kind == "depthwise" else set())
    assert changed.isdisjoint({"c", "slope"})
    assert run(after, [EqualizeChannels()]) is after


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_behind_a_flattened_image_takes_the_factor_of_each_channels_pixels(transposed):
    weight = (f(8, 9) / UNEVEN[:, None]).reshape(72, 1) * f(1, 4)

    def gemm(name):
        return [
            node("MaxPool", name, "p", kernel_shape=[2, 2], strides=[2, 2]),
            node("Flatten", "p", "l"),
            node("Gemm", "l v", "y", transB=transposed),
        ]

    before = network([("Relu", "")], gemm, {"v": np.ascontiguousarray(weight.T) if transposed else weight})
    after = run(before, [EqualizeChannels()])
    assert_same_outputs(before, after, {"x": f(2, 3, 8, 8)})
    ratio = initializers(after)["v"] / initializers(before)["v"]
    factors = (ratio.T if transposed else ratio).reshape(8, 9, 4)
    assert len(np.unique(factors)) > 2
    assert (factors == factors[:, :1, :1]).all()


def test_gemms_in_a_row_settle():
    constants = {"w1": f(6, 8) * UNEVEN, "b1": f(1, 8), "w2": f(8, 5) * UNEVEN[::-1, None], "w3": f(4, 5)}
    nodes = [
        node("Gemm", "x w1 b1", "a"),
        node("Relu", "a", "r"),
        node("Gemm", "r w2", "b"),
        node("Gemm", "b w3", "y", transB=1),
    ]
    before = model(nodes, {"x": ["n", 6]}, {"y": None}, constants)
    after = run(before, [EqualizeChannels()])
    assert after is not before
    assert_same_outputs(before, after, {"x": f(7, 6)})
    assert run(after, [EqualizeChannels()]) is after


def readers(operator):
    return lambda name: [node(operator, name, "r"), node("Conv", "r v c", "y")]


LEFT_ALONE = {
    "an upper bound": network(
        [],
        lambda name: [node("Clip", f"{name} low high", "r"), *conv("r")],
        {**LAST, "low": np.float32(0), "high": np.float32(6)},
    ),
    "not homogeneous": network([], readers("Sigmoid"), LAST),
    "two readers": network(
        [],
        lambda name: [node("Conv", f"{name} v c", "z"), node("Conv", f"{name} u", "s"), node("Add", "z s", "y")],
        {**LAST, "u": f(5, 8, 3, 3)},
    ),
    "an output": model(
        [node("Conv", "x w b", "t"), *conv("t")], {"x": ["n", 3, 8, 8]}, {"t": None, "y": None}, {**FIRST, **LAST}
    ),
    "groups": network([], lambda name: [node("Conv", f"{name} v", "y", group=2)], {"v": f(4, 4, 3, 3)}),
}


@pytest.mark.parametrize("kind", LEFT_ALONE)
def test_left_alone(kind):
    before = LEFT_ALONE[kind]
    assert run(before, [EqualizeChannels()]) is before


def test_a_weight_with_another_reader_stays_what_it_is():
    nodes = [node("Conv", "x w b", "t"), node("Conv", "x w", "s"), node("Conv", "t v c", "y"), node("Relu", "s", "z")]
    before = model(nodes, {"x": ["n", 3, 8, 8]}, {"y": None, "z": None}, {**FIRST, **LAST})
    assert run(before, [EqualizeChannels()]) is before


def test_channels_that_nothing_makes_or_reads_keep_their_numbers():
    constants = {name: value.copy() for name, value in {**FIRST, **LAST}.items()}
    constants["w"][2], constants["b"][2], constants["v"][:, 4] = 0, 0, 0
    before = network([("Relu", "")], conv, constants)
    after = run(before, [EqualizeChannels()])
    assert_same_outputs(before, after, {"x": f(2, 3, 8, 8)})
    np.testing.assert_array_equal(initializers(after)["v"][:, 2], constants["v"][:, 2])
    np.testing.assert_array_equal(initializers(after)["w"][4], constants["w"][4])
