"""Factors and shifts that a quantizer takes over: the graph afterwards, the same codes, what stays."""

import numpy as np
import pytest
from small_graphs import (
    assert_left_alone,
    assert_rewrites,
    assert_same_outputs,
    f,
    initializers,
    model,
    node,
    operators,
)

from amq_onnx.passes.absorb_affine import AbsorbAffine
from amq_onnx.passes.base import run

FEEDS = {"x": 3 * f(4, 50)}
STEP = 1 / 16  # products with it are exact


def graph(*steps, scale=STEP, zero=60, kind=np.uint8, clip=False, outputs=("y",), **constants):
    """x -> Tanh -> t -> steps -> s, quantized."""
    nodes = [node("Tanh", "x", "t"), *steps, node("QuantizeLinear", "s scale zero", "q")]
    codes = "q"
    if clip:
        nodes.append(node("Clip", "q low high", "l"))
        constants |= {"low": kind(0), "high": kind(15)}
        codes = "l"
    nodes.append(node("DequantizeLinear", f"{codes} scale zero", "y"))
    held = {"scale": np.float32(scale), "zero": np.asarray(zero, kind), "k": np.float32(2), "c": np.float32([-0.75])}
    return model(nodes, {"x": ["n", 50]}, dict.fromkeys(outputs), held | constants)


STEPS = {
    "factor, shift": ([node("Mul", "t k", "m"), node("Add", "m c", "s")], 2, 60 - 12),
    "shift, factor": ([node("Sub", "t c", "m"), node("Div", "m k", "s")], 0.5, 60 + 6),
    "factor": ([node("Mul", "k t", "s")], 2, 60),
    "shift": ([node("Add", "c t", "s")], 1, 60 - 12),
    "several": ([node("Add", "t c", "m"), node("Mul", "m k", "o"), node("Add", "o k", "s")], 2, 60 - 24 + 32),
}


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", STEPS)
def test_it_quantizes_what_they_are_applied_to(steps, clip):
    nodes, factor, zero_point = STEPS[steps]
    expected = ["Tanh", "QuantizeLinear", *["Clip"] * clip, "DequantizeLinear"]
    after = assert_rewrites(AbsorbAffine({"s"}), graph(*nodes, clip=clip), expected, FEEDS)
    assert initializers(after)["qm"] == np.float32(STEP / factor)
    assert initializers(after)["qn"] == zero_point


def test_what_others_read_stays_for_them():
    steps = [node("Mul", "t k", "m"), node("Add", "m c", "s"), node("Neg", "m", "n")]
    before = graph(*steps, outputs=("y", "n"))
    after = run(before, [AbsorbAffine({"s"})])
    assert sorted(operators(after)) == ["DequantizeLinear", "Mul", "Neg", "QuantizeLinear", "Tanh"]
    assert_same_outputs(after, before, FEEDS)


@pytest.mark.parametrize(
    ("steps", "changed"),
    [
        ("shift", {"scale": 0.07}),
        ("shift", {"zero": 11}),
        ("factor", {"k": np.float32(-2)}),
        ("factor", {"k": np.float32(0)}),
        ("factor", {"k": f(50)}),
        ("factor", {"scale": np.full(50, STEP, np.float32), "zero": np.full(50, 60)}),
    ],
    ids=["between steps", "outside the codes", "negative", "zero", "several numbers", "along an axis"],
)
def test_others_stay(steps, changed):
    assert_left_alone(AbsorbAffine({"s"}), graph(*STEPS[steps][0], **changed))


def test_tensors_that_are_not_named_stay():
    assert_left_alone(AbsorbAffine({"t"}), graph(*STEPS["shift"][0]))
