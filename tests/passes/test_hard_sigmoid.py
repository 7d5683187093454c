"""Hard sigmoids become one node: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import pytest
from small_graphs import IMAGE, assert_left_alone, assert_rewrites, f, initializers, model, node

from amq_onnx.passes.hard_sigmoid import JoinHardSigmoids, SplitHardSwishes

BOUNDS = {"low": np.float32(0), "six": np.float32(6), "three": np.float32(3), "sixth": np.float32([1 / 6])}
FEEDS = {"x": 4 * f(2, 3, 6, 6)}
# Add and Clip, as all of them begin.
CLIPPED = [node("Add", "x three", "s"), node("Clip", "s low six", "c")]


def graph(*nodes, **more):
    return model([*nodes, node("Neg", "h", "y")], IMAGE, {"y": None}, BOUNDS | more)


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ([node("Div", "c six", "h")], ["HardSigmoid", "Neg"]),
        ([node("Mul", "sixth c", "h")], ["HardSigmoid", "Neg"]),
        ([node("Mul", "x c", "p"), node("Div", "p six", "h")], ["HardSigmoid", "Mul", "Neg"]),
        ([node("Mul", "c x", "p"), node("Mul", "p sixth", "h")], ["HardSigmoid", "Mul", "Neg"]),
        ([node("Div", "c six", "g"), node("Mul", "g x", "h")], ["HardSigmoid", "Mul", "Neg"]),
    ],
    ids=["Div", "Mul", "product, then Div", "product, then Mul", "Div, then product"],
)
def test_the_four_steps_become_one(behind, expected):
    after = assert_rewrites(JoinHardSigmoids(), graph(*CLIPPED, *behind), expected, FEEDS, tolerance=1e-6)
    assert not set(BOUNDS) & set(initializers(after))


def test_several_in_a_row():
    swish = [[node("Add", f"{x} three", f"s{y}"), node("Clip", f"s{y} low six", f"c{y}")] for x, y in ("xp", "ph")]
    products = [[node("Mul", f"{x} c{y}", f"m{y}"), node("Div", f"m{y} six", y)] for x, y in ("xp", "ph")]
    before = graph(*swish[0], *products[0], *swish[1], *products[1])
    expected = ["HardSigmoid", "Mul", "HardSigmoid", "Mul", "Neg"]
    assert_rewrites(JoinHardSigmoids(), before, expected, FEEDS, tolerance=1e-6)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Add", "x three", "s"), node("Clip", "s three six", "c"), node("Div", "c six", "h")],
        [*CLIPPED, node("Div", "c three", "h")],
        [*CLIPPED, node("Div", "six c", "h")],
        [*CLIPPED, node("Div", "c six", "g"), node("Add", "g s", "h")],
        [*CLIPPED, node("Div", "c six", "g"), node("Add", "g c", "h")],
        [*CLIPPED, node("Mul", "x c", "p"), node("Div", "p six", "g"), node("Add", "g p", "h")],
        [node("Add", "x wide", "s"), node("Clip", "s low six", "c"), node("Div", "c six", "h")],
        [node("Add", "x each", "s"), node("Clip", "s low six", "c"), node("Div", "c six", "h")],
        [node("Clip", "x low six", "c"), node("Div", "c six", "h")],
    ],
    ids=[
        "bounds",
        "factor",
        "divided by",
        "sum read",
        "clip read",
        "product read",
        "dimension",
        "channels",
        "no shift",
    ],
)
def test_anything_else_stays(nodes):
    more = {"wide": np.full((1, 1, 1, 1, 1), 3, np.float32), "each": f(3, 1, 1)}
    used = {name: value for name, value in more.items() if any(name in item.input for item in nodes)}
    assert_left_alone(JoinHardSigmoids(), graph(*nodes, **used))


def test_steps_that_are_outputs_stay():
    nodes = [*CLIPPED, node("Div", "c six", "y")]
    for output in ("s", "c"):
        assert_left_alone(JoinHardSigmoids(), model(nodes, IMAGE, {"y": None, output: None}, BOUNDS))


def test_a_hard_swish_becomes_two_nodes():
    nodes = [node("HardSwish", "x", "h"), node("HardSwish", "h", "y")]
    before = model(nodes, IMAGE, {"y": None})
    assert_rewrites(SplitHardSwishes(), before, ["HardSigmoid", "Mul"] * 2, FEEDS, tolerance=1e-6)
