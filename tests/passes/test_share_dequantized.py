"""Float operators that read the same codes: one float tensor, what onnxruntime joins behind it, what stays."""

import numpy as np
import pytest
from small_graphs import assert_left_alone, assert_same_outputs, f, model, node, operators, operators_run

from amq_onnx.passes.base import run
from amq_onnx.passes.share_dequantized import ShareDequantized

CONSTANTS = {
    "s": np.float32(0.05),
    "z": np.uint8(128),
    "root": np.float32(np.sqrt(2)),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "two": np.float32(2),
    "tiny": np.float32(1e-5),
    "axes": np.array([-1]),
    "gain": np.linspace(0.5, 2, 8, dtype=np.float32),
    "shift": np.linspace(-1, 1, 8, dtype=np.float32),
    "w": np.arange(-64, 64, dtype=np.int8).reshape(8, 16) // 2,
    "sw": np.float32(0.02),
    "zw": np.int8(0),
}
GELU = [
    node("Div", "d root", "g1"),
    node("Erf", "g1", "g2"),
    node("Add", "g2 one", "g3"),
    node("Mul", "d g3", "g4"),
    node("Mul", "g4 half", "y"),
]
NORM = [
    node("ReduceMean", "d axes", "mean"),
    node("Sub", "d mean", "n1"),
    node("Pow", "n1 two", "n2"),
    node("ReduceMean", "n2 axes", "n3"),
    node("Add", "n3 tiny", "n4"),
    node("Sqrt", "n4", "n5"),
    node("Div", "n1 n5", "n6"),
    node("Mul", "n6 gain", "n7"),
    node("Add", "n7 shift", "y"),
]
QUANTIZED = [node("QuantizeLinear", "y s z", "yq"), node("DequantizeLinear", "yq s z", "yd")]
PRODUCT = [node("DequantizeLinear", "w sw zw", "wd"), node("MatMul", "d wd", "p")]


def network(*nodes, outputs=("yd",)):
    """x -> Q -> DQ -> d -> nodes"""
    made = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "d"), *nodes]
    used = {name for item in made for name in item.input}
    constants = {name: array for name, array in CONSTANTS.items() if name in used}
    return model(made, {"x": ["n", 4, 8]}, dict.fromkeys(outputs), constants)


@pytest.mark.parametrize(("nodes", "kind"), [(GELU, "Gelu"), (NORM, "LayerNormalization")], ids=["GELU", "norm"])
def test_onnxruntime_joins_the_parts(nodes, kind, tmp_path):
    before = network(*nodes, *QUANTIZED)
    assert kind not in operators_run(before, tmp_path)
    after = run(before, [ShareDequantized()])
    assert operators(after) == ["QuantizeLinear", "DequantizeLinear", "Clip", *operators(before)[2:]]
    assert kind in operators_run(after, tmp_path)
    assert_same_outputs(before, after, {"x": f(3, 4, 8)})
    assert run(after, [ShareDequantized()]) is after


def test_integer_kernels_keep_their_own(tmp_path):
    before = network(*GELU, *QUANTIZED, *PRODUCT, outputs=("yd", "p"))
    after = run(before, [ShareDequantized()])
    (product,) = [item for item in after.graph.node if item.op_type == "MatMul"]
    assert product.input[0] == "d"
    assert "MatMulIntegerToFloat" in operators_run(after, tmp_path)
    assert_same_outputs(before, after, {"x": f(3, 4, 8)})


def test_outputs_of_the_graph_keep_their_names():
    before = network(node("Abs", "d", "a"), node("Exp", "d", "e"), outputs=("d", "a", "e"))
    after = run(before, [ShareDequantized()])
    assert operators(after).count("Clip") == 1
    assert_same_outputs(before, after, {"x": f(3, 4, 8)})


@pytest.mark.parametrize(
    "before",
    [
        network(node("Abs", "d", "y"), *QUANTIZED),
        network(node("Abs", "d", "e"), *PRODUCT, outputs=("e", "p")),
        network(node("Sigmoid", "d", "y"), *QUANTIZED, node("Abs", "d", "a"), outputs=("yd", "a")),
        network(node("Mul", "d d", "a"), outputs=("a",)),
    ],
    ids=["one reader", "a product and one", "a kernel on codes and one", "one that reads it twice"],
)
def test_a_single_float_operator_stays(before):
    assert_left_alone(ShareDequantized(), before)


def test_weights_stay():
    before = network(*PRODUCT, node("Abs", "wd", "a"), node("Exp", "wd", "e"), outputs=("p", "a", "e"))
    assert_left_alone(ShareDequantized(), before)
