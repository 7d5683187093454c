"""Reshapes that take any number of samples."""

import numpy as np
import pytest
from small_graphs import assert_left_alone, assert_rewrites, f, initializers, model, node

from amq_onnx.passes.base import run
from amq_onnx.passes.free_batch import FreeBatch


@pytest.mark.parametrize(
    ("shape", "sizes", "free"),
    [
        ([4, 2, 8], [4, 16], [0, 16]),
        ([4, 2, 8], [4, -1], [0, -1]),
        ([4, 2, 8], [8, 8], [-1, 8]),
        ([1, 6], [6], [-1]),
    ],
)
def test_the_batch_is_read_off_the_tensor(shape, sizes, free):
    before = model([node("Reshape", "x s", "y")], {"x": shape}, {"y": None}, {"s": np.array(sizes)})
    after = assert_rewrites(FreeBatch(), before, ["Reshape"], {"x": f(*shape)})
    (found,) = initializers(after).values()
    np.testing.assert_array_equal(found, free)


@pytest.mark.parametrize(
    ("shape", "sizes", "attributes"),
    [
        (["n", 2, 8], [1, -1], {}),
        ([4, 2, 8], [8, -1], {}),
        ([4, 2, 8], [0, 16], {}),
        ([4, 2, 8], [-1, 16], {}),
        ([4, 2, 8], [4, 16], {"allowzero": 1}),
    ],
)
def test_others_stay(shape, sizes, attributes):
    nodes = [node("Reshape", "x s", "y", **attributes)]
    assert_left_alone(FreeBatch(), model(nodes, {"x": shape}, {"y": None}, {"s": np.array(sizes)}))


def test_one_constant_for_all_of_a_shape():
    nodes = [node("Reshape", "x s", "a"), node("Reshape", "x t", "b"), node("Add", "a b", "y")]
    constants = {"s": np.array([4, 16]), "t": np.array([4, 16])}
    before = model(nodes, {"x": [4, 2, 8]}, {"y": None}, constants)
    assert len(initializers(run(before, [FreeBatch()]))) == 1
