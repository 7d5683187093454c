"""Factors behind linear layers: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import pytest
from onnx import TensorProto
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
from amq_onnx.passes.fold_layer_scale import FoldLayerScale

FEEDS = {"x": f(2, 5, 6)}


def scaled(*nodes, flat=False, outputs=("y",), **constants):
    """x -> a layer to 4 outputs -> ... -> y."""
    held = {"w": f(6, 4), "b": f(4), "g": f(4), **constants}
    return model(nodes, {"x": ["n", 6] if flat else ["n", 5, 6]}, dict.fromkeys(outputs), held)


MATMUL = node("MatMul", "x w", "m")
ADD = node("Add", "b m", "a")
INTEGERS = [
    *[node("Cast", "x", "i", to=TensorProto.INT32), node("MatMul", "i v", "j"), node("Div", "j k", "q")],
    node("Cast", "q", "y", to=TensorProto.FLOAT),
]


@pytest.mark.parametrize("factor", [f(4), f(1), np.float32(0.3)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_and_its_bias(factor, bias):
    nodes = [MATMUL, *[ADD] * bias, node("Mul", f"g {'a' if bias else 'm'}", "y")]
    assert_rewrites(FoldLayerScale(), scaled(*nodes, g=factor), ["MatMul", *["Add"] * bias], FEEDS, tolerance=1e-6)
    nodes[-1] = node("Div", f"{'a' if bias else 'm'} g", "y")
    assert_rewrites(FoldLayerScale(), scaled(*nodes, g=factor), ["MatMul", *["Add"] * bias], FEEDS, tolerance=1e-6)


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gemm(transposed, bias):
    nodes = [node("Gemm", "x w b" if bias else "x w", "m", transB=transposed), node("Mul", "m g", "y")]
    before = scaled(*nodes, flat=True, w=f(4, 6) if transposed else f(6, 4))
    assert_rewrites(FoldLayerScale(), before, ["Gemm"], {"x": f(3, 6)}, tolerance=1e-6)


def test_one_factor_after_another():
    nodes = [MATMUL, ADD, node("Mul", "a g", "c"), node("Mul", "k c", "y")]
    assert_rewrites(FoldLayerScale(), scaled(*nodes, k=f(4)), ["MatMul", "Add"], FEEDS, tolerance=1e-6)


HEADS = {"four": np.int64([0, 0, 2, 2])}
ATTENTION = [
    *[MATMUL, ADD, node("Reshape", "a four", "r"), node("Transpose", "r", "q", perm=[0, 2, 1, 3])],
    *[node("MatMul", "x v", "n"), node("Reshape", "n four", "s"), node("Transpose", "s", "k", perm=[0, 2, 3, 1])],
]


@pytest.mark.parametrize("scale", [node("Div", "p g", "y"), node("Mul", "g p", "y")], ids=["Div", "Mul"])
@pytest.mark.parametrize("factors", ["q k", "k q"])
def test_the_scale_of_attention_goes_into_one_of_the_layers(scale, factors):
    before = scaled(*ATTENTION, node("MatMul", factors, "p"), scale, **HEADS, g=np.float32(1.7), v=f(6, 4))
    after = run(before, [FoldLayerScale()])
    assert sorted(operators(after)) == sorted(operators(before)[:-1])
    assert_same_outputs(after, before, FEEDS, tolerance=1e-6)


@pytest.mark.parametrize(
    ("nodes", "changed"),
    [
        ([node("MatMul", "q k", "p"), node("Mul", "p g", "y")], {"g": f(5)}),
        ([node("MatMul", "q k", "p"), node("Mul", "p g", "y")], {"g": f(1, 1)}),
        ([node("MatMul", "q k", "p"), node("Div", "g p", "y")], {}),
        ([node("MatMul", "q k", "p"), node("Div", "p g", "y")], {"g": np.float32(0)}),
        ([node("Exp", "q", "e"), node("Exp", "k", "h"), node("MatMul", "e h", "p"), node("Mul", "p g", "y")], {}),
        ([node("Transpose", "q", "t", perm=[0, 1, 3, 2]), node("MatMul", "q t", "p"), node("Mul", "p g", "y")], {}),
    ],
    ids=["of columns", "of two dimensions", "the divisor", "zero", "behind something else", "itself"],
)
def test_other_scales_of_products_stay(nodes, changed):
    held = {**HEADS, "g": np.float32(1.7), "v": f(6, 4), **changed}
    assert_left_alone(FoldLayerScale(), scaled(*ATTENTION, *nodes, **held))


def test_a_bias_that_others_read_stays_theirs():
    nodes = [MATMUL, ADD, node("Mul", "a g", "y"), node("MatMul", "x v", "n"), node("Add", "n b", "z")]
    before = scaled(*nodes, outputs=("y", "z"), v=f(6, 4))
    after = run(before, [FoldLayerScale()])
    assert sorted(operators(after)) == ["Add", "Add", "MatMul", "MatMul"]
    assert_same_outputs(after, before, FEEDS, tolerance=1e-6)
    np.testing.assert_array_equal(initializers(after)["b"], initializers(before)["b"])


@pytest.mark.parametrize(
    ("nodes", "changed"),
    [
        ([MATMUL, node("Mul", "m m", "y")], {}),
        ([MATMUL, node("Mul", "m g", "y")], {"g": f(5, 4)}),
        ([MATMUL, node("Mul", "m g", "y")], {"g": f(1, 1, 1, 4)}),
        ([MATMUL, ADD, node("Mul", "a g", "y")], {"b": f(5, 4)}),
        ([MATMUL, node("Add", "m m", "a"), node("Mul", "a g", "y")], {}),
        ([MATMUL, node("Mul", "m g", "y")], {"w": f(2, 6, 4)}),
        ([MATMUL, node("Div", "g m", "y")], {}),
        (INTEGERS, {"v": np.int32([[1, 2]] * 6), "k": np.int32(3)}),
    ],
    ids=[
        *["itself", "other channels", "another dimension", "bias of rows", "no bias", "several weights"],
        *["the divisor", "integers"],
    ],
)
def test_others_stay(nodes, changed):
    assert_left_alone(FoldLayerScale(), scaled(*nodes, **changed))


def test_what_something_else_reads_stays():
    for read in ("m", "a", "w"):
        more = node("Neg", read, "z")
        assert_left_alone(FoldLayerScale(), scaled(MATMUL, ADD, node("Mul", "a g", "y"), more, outputs=("y", "z")))
    assert_left_alone(FoldLayerScale(), scaled(MATMUL, node("Mul", "m g", "y"), outputs=("y", "m")))
