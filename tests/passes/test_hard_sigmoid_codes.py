"""Hard sigmoids of codes: the graph afterwards, the same numbers, what stays."""

import numpy as np
import pytest
from small_graphs import assert_left_alone, assert_same_outputs, f, initializers, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.hard_sigmoid_codes import HardSigmoidsOnCodes
from amq_onnx.quantizer.activation_ranges import activation_encoding, range_of_hard_sigmoid

FEEDS = {"x": 4 * f(2, 30)}
ENCODING = activation_encoding(*range_of_hard_sigmoid(-7.0, 9.0, 8, 1 / 6, 0.5), 8)


def graph(*more, scale=None, outputs=("y",), **constants):
    """x, quantized, times its hard sigmoid."""
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("HardSigmoid", "d", "h", alpha=1 / 6),
        node("Mul", "d h", "y"),
    ]
    held = {"s": np.float32(ENCODING.scale if scale is None else scale), "z": np.uint8(ENCODING.zero_point)}
    return model([*nodes, *more], {"x": ["n", 30]}, dict.fromkeys(outputs), held | constants)


def test_a_clip_of_codes_takes_its_place():
    before = graph()
    after = run(before, [HardSigmoidsOnCodes({"x": ENCODING})])
    assert sorted(operators(after)) == sorted(["QuantizeLinear", *["DequantizeLinear"] * 2, "Clip", "Mul"])
    assert_same_outputs(after, before, FEEDS, tolerance=1e-6)
    assert_left_alone(HardSigmoidsOnCodes({"x": ENCODING}), after)


@pytest.mark.parametrize("factor", [0.97, 1.004, 1.3])
def test_a_scale_that_was_learned_becomes_the_nearest(factor):
    before = graph(scale=ENCODING.scale * factor)
    after = run(before, [HardSigmoidsOnCodes({"x": ENCODING})])
    scale = initializers(after)["s"]
    codes = 3 / float(scale)
    assert codes == pytest.approx(round(codes), abs=1e-4) and codes <= ENCODING.zero_point + 0.1
    assert scale == pytest.approx(initializers(before)["s"], rel=0.01)
    assert_same_outputs(after, graph(scale=scale), FEEDS, tolerance=1e-6)


def test_a_second_one_of_a_tensor_stays():
    before = graph(node("HardSigmoid", "d", "g", alpha=0.2), outputs=("y", "g"))
    after = run(before, [HardSigmoidsOnCodes({"x": ENCODING})])
    assert (operators(after).count("Clip"), operators(after).count("HardSigmoid")) == (1, 1)
    assert_same_outputs(after, before, FEEDS, tolerance=1e-6)


@pytest.mark.parametrize(
    "encodings",
    [{}, {"x": activation_encoding(-7.01, 9.0, 8)}, {"x": activation_encoding(-1.0, 9.0, 8)}],
    ids=["not quantized", "between codes", "short"],
)
def test_others_stay(encodings):
    assert_left_alone(HardSigmoidsOnCodes(encodings), graph())
