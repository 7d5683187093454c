"""DepthToSpace as a reordering of rows: the same numbers in onnxruntime, what stays."""

import numpy as np
import pytest
from onnx.shape_inference import infer_shapes
from small_graphs import assert_left_alone, assert_same_outputs, f, initializers, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.pixel_shuffle import PixelShuffles


def network(*between, size=2, shape=("n", 3, 5, 6), mode="CRD", bias=True, results=("y",), behind=(), group=1):
    """x -> Conv -> c -> nodes between -> DepthToSpace -> s -> Exp -> y"""
    last = between[-1].output[0] if between else "c"
    nodes = [
        node("Conv", "x w b" if bias else "x w", "c", pads=[1, 1, 1, 1], group=group),
        *between,
        node("DepthToSpace", last, "s", blocksize=size, **({"mode": mode} if mode else {})),
        node("Exp", "s", "y"),
        *behind,
    ]
    count = 3 * size**2
    constants = {"w": f(count, shape[1] // group, 3, 3) * np.float32(0.2), "high": np.float32(0.5)}
    constants |= {"b": f(count)} if bias else {}
    used = {name for item in nodes for name in item.input}
    constants = {name: value for name, value in constants.items() if name in used}
    return infer_shapes(model(nodes, {"x": list(shape)}, dict.fromkeys(results), constants))


RELU = node("Relu", "c", "r")


@pytest.mark.parametrize(
    "before",
    [
        network(),
        network(mode="DCR"),
        network(mode=None, bias=False),
        network(size=3, bias=False),
        network(shape=("n", 3, "h", "w")),
        network(RELU, node("Clip", "r - high", "t")),
        network(node("LeakyRelu", "c", "r", alpha=0.2)),
    ],
    ids=["CRD", "DCR", "by default, no bias", "3x3", "free sizes", "Relu, Clip", "LeakyRelu"],
)
def test_rows_are_moved(before):
    after = run(before, [PixelShuffles()])
    assert "DepthToSpace" not in operators(after) and operators(after).count("Transpose") == 3
    assert_same_outputs(before, after, {"x": f(2, 3, 5, 6)}, 1e-6)
    assert run(after, [PixelShuffles()]) is after


def test_weights_are_in_the_order_of_places():
    before = network()
    first, second = (initializers(proto) for proto in (before, run(before, [PixelShuffles()])))
    order = [channel * 4 + place for place in range(4) for channel in range(3)]
    assert np.array_equal(second["w"], first["w"][order]) and np.array_equal(second["b"], first["b"][order])


@pytest.mark.parametrize(
    "before",
    [
        network(results=("y", "s")),
        network(results=("y", "c")),
        network(RELU, results=("y", "r")),
        network(results=("y", "e"), behind=(node("Erf", "c", "e"),)),
        network(results=("y", "e"), behind=(node("Erf", "w", "e"),)),
        network(node("Erf", "c", "r")),
        network(shape=("n", 6, 5, 6), group=3),
        model([node("DepthToSpace", "x", "s", blocksize=2), node("Exp", "s", "y")], {"x": [1, 8, 3, 3]}, {"y": None}),
    ],
    ids=["an output", "what Conv makes is one", "what Relu makes is one", "another reader", "a shared weight",
         "another operator between", "groups", "no Conv"],
)  # fmt: skip
def test_what_stays(before):
    assert_left_alone(PixelShuffles(), before)
