"""Inputs drawn at random fit the model, and integers mean something to it."""

import numpy as np
import pytest
from onnx import TensorProto
from small_graphs import model, node, session

from amq_onnx.errors import UsageError
from amq_onnx.model.random_data import random_data


def network(**inputs):
    """Each input in an Identity of its own."""
    nodes = [node("Identity", name, f"{name}_out") for name in inputs]
    return model(nodes, inputs, {f"{name}_out": value for name, value in inputs.items()})


def drawn(proto, samples=4, seed=0):
    return next(random_data(proto, samples, seed).batches(samples))


def test_they_follow_the_seed():
    proto = network(x=["n", 3])
    one, two, other = (drawn(proto, seed=seed)["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).all()


def test_another_free_dimension_is_refused():
    with pytest.raises(UsageError, match=r"'x' has free dimensions.*--shape x=1,3,224,"):
        random_data(network(x=["n", 3, "width"]), 4, 0)


def test_free_dimensions_have_the_sizes_that_are_given():
    proto = network(x=["n", 3, "width"], state=[2, "n", 5])
    batch = next(random_data(proto, 4, 0, {"x": (1, 3, 7)}).batches(4))
    assert (batch["x"].shape, batch["state"].shape) == ((4, 3, 7), (2, 4, 5))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (1, 4, 7)}, "--shape x=1,4,7 doesn't fit the input: it is 1,3,N"),
        ({"x": (3, 7)}, "--shape x=3,7 doesn't fit"),
        ({"x": (1, 3, 7), "z": (1,)}, "--shape z: the model has no such input; it has x"),
    ],
)
def test_sizes_that_fit_no_input(shapes, message):
    with pytest.raises(UsageError, match=message):
        random_data(network(x=["n", 3, "width"]), 4, 0, shapes)


def test_samples_run_along_their_own_dimension():
    batch = drawn(network(x=["n", 3], state=[4, "n", 5], rate=(TensorProto.INT64, [])))
    assert (batch["x"].shape, batch["state"].shape, batch["rate"].shape) == ((4, 3), (4, 4, 5), ())


def test_masks_are_ones_and_pixels_any_number():
    batch = drawn(network(mask=(TensorProto.INT64, ["n", 9]), seen=(TensorProto.BOOL, ["n"]),
                          image=(TensorProto.UINT8, ["n", 999])))  # fmt: skip
    assert (batch["mask"] == 1).all() and batch["mask"].dtype == np.int64
    assert batch["seen"].all() and batch["seen"].dtype == bool
    assert (batch["image"].min(), batch["image"].max(), batch["image"].dtype) == (0, 255, np.uint8)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_indices_are_rows_of_the_smallest_table_they_pick_from(axis):
    sizes = {"words": (7, 9), "kinds": (5, 8)}
    tables = {name: np.zeros(size if axis == 0 else size[::-1], np.float32) for name, size in sizes.items()}
    nodes = [
        node("Gather", "words ids", "a", axis=axis),
        node("Cast", "ids", "wide", to=TensorProto.INT64),
        node("Unsqueeze", "wide zero", "wider"),
        node("Gather", "kinds wider", "b", axis=axis),
    ]
    tables["zero"] = np.array([0], np.int64)
    proto = model(nodes, {"ids": (TensorProto.INT32, ["n", 50])}, {"a": None, "b": None}, tables)
    batch = drawn(proto)
    assert (batch["ids"].min(), batch["ids"].max()) == (0, 4)
    session(proto).run(None, batch)  # which refuses indices outside of a table
