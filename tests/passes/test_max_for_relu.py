"""Relu and Clip that stay float behind integer kernels."""

import numpy as np
import pytest
from small_graphs import assert_same_outputs, f, model, node, operators, operators_run

from amq_onnx.passes.base import run
from amq_onnx.passes.max_for_relu import MaxForRelu

CONSTANTS = {
    "s": np.float32(0.05),
    "z": np.uint8(128),
    "w": np.arange(-12, 12, dtype=np.int8).reshape(6, 4),
    "sw": np.float32(0.02),
    "zw": np.int8(0),
    "low": np.float32(-0.3),
    "high": np.float32(0.4),
}
FEEDS = {"x": f(5, 6)}


def product(*behind, outputs=("y",), operator="MatMul"):
    nodes = [
        node("QuantizeLinear", "x s z", "qx"),
        node("DequantizeLinear", "qx s z", "dx"),
        node("DequantizeLinear", "w sw zw", "dw"),
        node(operator, "dx dw", "m"),
        *behind,
    ]
    used = {name for each in nodes for name in each.input}
    held = {name: array for name, array in CONSTANTS.items() if name in used}
    return model(nodes, {"x": [5, 6]}, dict.fromkeys(outputs), held)


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
@pytest.mark.parametrize(
    ("bound", "made"),
    [
        (node("Relu", "m", "r"), ["Max"]),
        (node("Clip", "m low high", "r"), ["Max", "Min"]),
        (node("Clip", "m low", "r"), ["Max"]),
        (node("Clip", "m - high", "r"), ["Min"]),
    ],
)
def test_the_product_runs_on_integers(bound, made, operator, tmp_path):
    proto = product(bound, node("Exp", "r", "y"), operator=operator)
    found = run(proto, [MaxForRelu()])
    assert sorted(operators(found)[4:]) == sorted([*made, "Exp"])
    assert_same_outputs(proto, found, FEEDS)
    first, second = (operators_run(each, tmp_path, "ENABLE_EXTENDED") for each in (proto, found))
    assert "MatMulIntegerToFloat" in second or "QGemm" in second
    assert {"MatMul", "Gemm", "FusedGemm"} & set(first)  # what the pass is there for
    assert run(found, [MaxForRelu()]) == found


@pytest.mark.parametrize(
    ("behind", "outputs"),
    [
        ([node("Relu", "m", "r"), node("QuantizeLinear", "r s z", "q"), node("DequantizeLinear", "q s z", "y")], ["y"]),
        ([node("Relu", "m", "y")], ["y"]),
        ([node("Relu", "m", "r"), node("Exp", "r", "y")], ["y", "m"]),
        ([node("Relu", "m", "r"), node("Exp", "r", "e"), node("Sub", "e m", "y")], ["y"]),
        ([node("Elu", "m", "r"), node("Exp", "r", "y")], ["y"]),
        ([node("Clip", "m", "r"), node("Exp", "r", "y")], ["y"]),
        ([node("Exp", "low", "l"), node("Clip", "m l", "r"), node("Exp", "r", "y")], ["y"]),
    ],
    ids=["quantized", "output", "a product that is one", "read elsewhere", "another operator", "no bounds", "computed"],
)
def test_others_stay(behind, outputs):
    proto = product(*behind, outputs=outputs)
    assert run(proto, [MaxForRelu()]) == proto
