"""What a Pad puts around the input of a MaxPool; onnxruntime computes the same before and after."""

import numpy as np
import pytest
from small_graphs import IMAGE, assert_left_alone, assert_rewrites, f, model, node, operators

from amq_onnx.passes.max_pool_pads import MaxPoolPads
from amq_onnx.rewriting import prepare

AROUND = np.array([0, 0, 1, 0, 0, 0, 1, 1])
POOL = {"kernel_shape": [3, 3]}
INFINITE, LOWEST = np.float32(-np.inf), np.finfo(np.float32).min


def padded(*behind, pads=AROUND, fill=INFINITE, outputs=("y",), pad=None, pool=None):
    pooled = node("MaxPool", "p", "y", **(POOL | (pool or {})))
    nodes = [node("Pad", "x pads fill", "p", **(pad or {})), pooled, *behind]
    return model(nodes, IMAGE, dict.fromkeys(outputs), {"pads": pads, "fill": fill})


@pytest.mark.parametrize(
    ("fill", "pool"),
    [(INFINITE, {}), (LOWEST, {}), (INFINITE, {"strides": [2, 2]}), (INFINITE, {"pads": [1, 1, 0, 0]})],
    ids=["infinity", "the lowest number", "strides", "a pool that pads"],
)
def test_the_pool_pads_for_itself(fill, pool):
    assert_rewrites(MaxPoolPads(), padded(fill=fill, pool=pool), ["MaxPool"], {"x": f(2, 3, 6, 6) - 5})


def test_two_pools_do():
    before = padded(node("MaxPool", "p", "z", kernel_shape=[2, 2]), outputs=("y", "z"))
    assert_rewrites(MaxPoolPads(), before, ["MaxPool", "MaxPool"], {"x": f(2, 3, 6, 6) - 5})


@pytest.mark.parametrize(
    "before",
    [
        padded(fill=np.float32(0)),
        padded(pad={"mode": "edge"}),
        padded(pads=np.array([0, 0, 3, 0, 0, 0, 1, 1])),
        padded(pads=np.array([0, 1, 1, 0, 0, 0, 1, 1])),
        padded(pads=np.array([0, 0, -1, 0, 0, 0, 1, 1])),
        padded(pool={"ceil_mode": 1, "strides": [2, 2]}),
        padded(pool={"auto_pad": "SAME_UPPER"}),
        padded(node("Exp", "p", "z"), outputs=("y", "z")),
        padded(outputs=("y", "p")),
    ],
    ids=["zeros", "edges", "as wide as the kernel", "channels", "cut off", "rounded up", "auto pad", "another reader",
         "an output"],
)  # fmt: skip
def test_others_stay(before):
    assert_left_alone(MaxPoolPads(), before)


def test_nothing_infinite_is_quantized():
    nodes = [node("Conv", "x w", "c"), node("Pad", "c pads fill", "p"), node("MaxPool", "p", "m", **POOL)]
    nodes.append(node("Conv", "m v", "y"))
    constants = {"w": f(4, 3, 1, 1), "v": f(2, 4, 1, 1), "pads": AROUND, "fill": INFINITE}
    prepared = prepare(model(nodes, IMAGE, {"y": None}, constants))
    assert operators(prepared.model) == ["Conv", "MaxPool", "Conv"]
    assert [site.name for site in prepared.sites.activations] == ["x", "c"]
