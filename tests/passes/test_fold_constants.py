"""What depends on constants only: computed where the file becomes no larger, the same outputs in onnxruntime."""

import numpy as np
import onnx
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

from amq_onnx.passes.base import run
from amq_onnx.passes.fold_constants import FoldConstants


def test_a_transposed_and_scaled_weight_is_computed():
    nodes = [
        node("Transpose", "w", "t", perm=[1, 0]),
        node("Mul", "t s", "v"),
        node("MatMul", "x v", "y"),
    ]
    weights = {"w": f(4, 6), "s": np.float32(0.3)}
    before = model(nodes, {"x": ["n", 6]}, {"y": None}, weights)
    after = assert_rewrites(FoldConstants(), before, ["MatMul"], {"x": f(2, 6)})
    np.testing.assert_array_equal(initializers(after)["v"], weights["w"].T * weights["s"])


def test_what_depends_on_an_input_stays():
    nodes = [node("Mul", "x s", "v"), node("Neg", "v", "y")]
    assert_left_alone(FoldConstants(), model(nodes, {"x": [3]}, {"y": [3]}, {"s": np.float32(2)}))


def test_the_shape_of_a_free_dimension_is_not_frozen():
    nodes = [node("Shape", "x", "s"), node("ConstantOfShape", "s", "z"), node("Add", "x z", "y")]
    before = model(nodes, {"x": ["n", 3]}, {"y": None})
    after = run(before, [FoldConstants()])
    for count in (1, 4):
        assert_same_outputs(before, after, {"x": f(count, 3)})


def test_a_result_that_would_bloat_the_file_stays_computed():
    nodes = [node("Expand", "one shape", "big"), node("Add", "x big", "y")]
    constants = {"one": np.float32(1), "shape": np.array([17_000_000])}  # 68 MB
    after = run(model(nodes, {"x": [1]}, {"y": None}, constants), [FoldConstants()])
    assert operators(after) == ["Expand", "Add"]
    assert after.ByteSize() < 1000


def waves(size):
    """x times cos(t * t') for t from 0 to `size`, as a Fourier transform that its graph writes out has it."""
    nodes = [
        node("Range", "nothing end one", "t"),
        node("Unsqueeze", "t axis", "row"),
        node("Mul", "t row", "angles"),
        node("Cos", "angles", "w"),
        node("MatMul", "x w", "y"),
    ]
    ends = {"nothing": np.float32(0), "one": np.float32(1), "end": np.float32(size), "axis": np.array([1])}
    return onnx.shape_inference.infer_shapes(
        model(nodes, {"x": ["n", size]}, {"y": None}, ends), data_prop=True, strict_mode=True
    )


def test_what_is_larger_than_where_it_comes_from_stays_computed():
    before = waves(40)
    after = run(before, [FoldConstants()])
    assert operators(after) == ["Mul", "Cos", "MatMul"]
    assert_same_outputs(before, after, {"x": f(3, 40)}, 1e-6)
    assert run(after, [FoldConstants()]) is after


def test_what_is_small_is_computed():
    assert_rewrites(FoldConstants(), waves(12), ["MatMul"], {"x": f(3, 12)})


@pytest.mark.parametrize("rank", [2, 30])
def test_a_sum_of_products_no_larger_than_its_terms_is_computed(rank):
    """W + A B, weights with their low-rank adaptation: the product alone has more elements than A and B."""
    nodes = [node("MatMul", "a b", "p"), node("Add", "w p", "v"), node("MatMul", "x v", "y")]
    before = model(nodes, {"x": ["n", 32]}, {"y": None}, {"w": f(32, 24), "a": f(32, rank), "b": f(rank, 24)})
    before = onnx.shape_inference.infer_shapes(before)
    after = run(before, [FoldConstants()])
    assert operators(after) == ["MatMul"] and list(initializers(after)) == ["v"]
    assert_same_outputs(before, after, {"x": f(3, 32)}, 1e-6)


def test_both_a_large_and_a_small_result_of_one_constant():
    nodes = [
        node("Expand", "row shape", "large"),
        node("ReduceMean", "large", "small", keepdims=0),
        node("Add", "x large", "a"),
        node("Mul", "a small", "y"),
    ]
    before = model(nodes, {"x": [40, 30]}, {"y": None}, {"row": f(1, 30), "shape": np.array([40, 30])})
    after = run(onnx.shape_inference.infer_shapes(before), [FoldConstants()])
    assert_same_outputs(before, after, {"x": f(40, 30)})
    assert "ReduceMean" not in operators(after)


def test_shapes_in_front_of_what_stays():
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s zero", "n"),
        node("Unsqueeze", "n zeros", "ns"),
        node("Concat", "ns ns", "square", axis=0),
        node("Expand", "one square", "large"),
        node("MatMul", "large x", "y"),
    ]
    constants = {"zero": np.array(0), "zeros": np.array([0]), "one": f(1, 1)}
    before = onnx.shape_inference.infer_shapes(model(nodes, {"x": [30, 4]}, {"y": None}, constants), data_prop=True)
    after = run(before, [FoldConstants()])
    assert operators(after) == ["Expand", "MatMul"]
    assert_same_outputs(before, after, {"x": f(30, 4)})
