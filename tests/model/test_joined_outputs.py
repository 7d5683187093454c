"""Which outputs hold several things, and what a comparison makes of these."""

import numpy as np
import onnx
import pytest
from joined_graphs import joined, level
from small_graphs import model, node

from amq_onnx.model.joined_outputs import Joint, apart, joined_outputs
from amq_onnx.model.random_data import random_data
from amq_onnx.runtime.verification import verify

SHAPES = {"image": np.array([0, 9, 2, 3]), "row": np.array([0, 9, 6])}


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([*level(0), node("Identity", "j0", "y")], Joint(1, (4, 5))),
        ([*level(0, axis=-2), node("Identity", "j0", "y")], Joint(1, (4, 5))),
        ([*level(0), node("Transpose", "j0", "y", perm=[0, 2, 1])], Joint(2, (4, 5))),
        ([*level(0), node("Transpose", "j0", "y")], Joint(1, (4, 5))),
        ([*level(0), *level(1), node("Concat", "j0 j1", "y", axis=2)], Joint(1, (4, 5))),
        (
            [
                *level(0),
                node("Reshape", "j0 image", "i"),
                node("Reshape", "i row", "r"),
                *level(1),
                node("Concat", "r j1", "j", axis=2),
                node("Transpose", "j", "y", perm=[0, 2, 1]),
            ],
            Joint(2, (4, 5)),
        ),
        ([*level(0, "Relu"), node("Identity", "j0", "y")], None),
        ([*level(0), *level(1, axis=2)[:3], node("Concat", "j0 s1", "y", axis=1)], Joint(1, (9, 5))),
        ([*level(0), *level(1), node("Concat", "j0 j1", "y", axis=1)], None),
        ([*level(0), node("Relu", "j0", "y")], None),
    ],
    ids=[
        "boxes and scores",
        "negative axis",
        "transposed",
        "turned round",
        "two levels",
        "images of two levels",
        "no probabilities",
        "scores beside a joint",
        "along the same axis",
        "computed behind",
    ],
)
def test_how_an_output_is_joined(nodes, expected):
    assert joined_outputs(joined(nodes, **SHAPES)) == ({} if expected is None else {"y": expected})


def test_parts_that_nobody_knows_the_size_of():
    nodes = [node("Sigmoid", "x", "s"), node("Concat", "x s", "y", axis=1)]
    assert joined_outputs(model(nodes, {"x": ["n", "width", 6]}, {"y": None})) == {}


def test_arrays_are_cut_where_they_are_as_large_as_that():
    array = np.arange(18).reshape(2, 9)
    found = apart({"y": array, "z": array}, {"y": Joint(1, (4, 5)), "x": Joint(0, (1, 1))})
    assert list(found) == ["y[0]", "y[1]", "z"]
    np.testing.assert_array_equal(np.concatenate([found["y[0]"], found["y[1]"]], 1), array)
    for other in (Joint(1, (4, 4)), Joint(2, (4, 5))):
        assert list(apart({"y": array}, {"y": other})) == ["y"]


def test_large_boxes_hide_no_scores(tmp_path):
    nodes = [*level(0), node("Identity", "j0", "y")]
    paths = [tmp_path / "1.onnx", tmp_path / "2.onnx"]
    for path, size in zip(paths, (5, -5), strict=True):
        onnx.save(joined(nodes, size), path)
    found = verify(*paths, random_data(joined(nodes), 8, 0))
    assert found.metric == "cosine" and found.quantized_score < 0.9
    assert found.outputs["y[0]"].sqnr == np.inf and found.outputs["y[1]"].sqnr < 10
