"""Models of a fixed batch, run on any number of samples where they can."""

import numpy as np
import pytest
from small_graphs import f, model, node

from amq_onnx.executor.interpreter import Executor
from amq_onnx.freed_batch import freed
from amq_onnx.model.data import Dataset
from amq_onnx.model.inputs import input_specs
from amq_onnx.rewriting import prepare

X = {"x": [2, 4, 3]}
W, V = {"w": f(3, 5)}, {"v": f(20, 5)}
FLAT = [node("MatMul", "x w", "a"), node("Reshape", "a sizes", "b"), node("MatMul", "b v", "y")]
ALIKE = {
    "no shapes": ([node("MatMul", "x w", "y")], W),
    "a Reshape": (FLAT, {**W, **V, "sizes": np.array([2, 20])}),
    "two dimensions joined": (
        [node("Reshape", "x all", "a"), node("Gemm", "a w", "b"), node("Reshape", "b sizes", "y")],
        {**W, "all": np.array([8, 3]), "sizes": np.array([2, 4, 5])},
    ),
}
_A = node("MatMul", "x w", "a")
TOGETHER = {
    "a constant for each sample": ([_A, node("Concat", "a each", "y", axis=2)], {**W, "each": f(2, 4, 1)}),
    "a mean over samples": ([_A, node("ReduceMean", "a", "m", axes=[0]), node("Sub", "a m", "y")], W),
    "a scalar": ([_A, node("ReduceMean", "a", "y", keepdims=0)], W),
    "samples behind": ([_A, node("Transpose", "a", "y", perm=[1, 0, 2])], W),
}


def data_for(proto, samples=8):
    given = f(samples, 4, 3)
    return Dataset(lambda: [{"x": given}], input_specs(proto), "the data")


def executor_of(kind):
    nodes, constants = kind
    proto = model(nodes, X, {"y": None}, constants, opset=13)
    return proto, Executor(prepare(proto).model)


@pytest.mark.parametrize("kind", ALIKE.values(), ids=ALIKE)
def test_samples_that_are_computed_alike_come_in_any_number(kind):
    proto, executor = executor_of(kind)
    data = data_for(proto)
    found = freed(data, [executor])
    assert found.fixed_batch() is None
    assert [found.count(batch) for batch in found.batches(3)] == [3, 3, 2]
    assert freed(found, [executor]) is found
    fixed, free = (np.concatenate([batch["x"] for batch in each.batches(2)]) for each in (data, found))
    np.testing.assert_array_equal(fixed, free)


@pytest.mark.parametrize("kind", TOGETHER.values(), ids=TOGETHER)
def test_samples_that_depend_on_others_stay_together(kind):
    proto, executor = executor_of(kind)
    data = data_for(proto)
    assert freed(data, [executor]) is data
    free = executor_of(ALIKE["no shapes"])[1]
    assert freed(data, [free]).fixed_batch() is None
    assert freed(data, [free, executor]) is data


def test_one_batch_is_not_enough_to_tell():
    proto, executor = executor_of(ALIKE["no shapes"])
    data = data_for(proto, samples=3)
    assert freed(data, [executor]) is data
