"""What is joined with codes: quantized in front of the Concat, the same codes in onnxruntime, what stays."""

import numpy as np
import pytest
from small_graphs import assert_left_alone, f, model, node, operators_run, outputs

from amq_onnx.passes.base import run
from amq_onnx.passes.concat_codes import ConcatsOnCodes

PARAMETERS = {
    "s": np.float32(0.05),
    "z": np.uint8(120),
    "t": np.float32(0.0317),
    "o": np.uint8(110),
    "table": f(2, 3, 8, 8),
}
FLOATS = node("Softmax", "y", "real")  # what no integer kernel makes
IMAGE = {"x": [2, 3, 8, 8], "y": [2, 3, 8, 8]}


def joined(concat="d real", *behind, before=(FLOATS,), results=("e",), **attributes):
    """x -> Q(s, z) -> DQ -> d;  d, what `before` makes -> Concat -> Q(t, o) -> DQ -> e"""
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        *before,
        node("Concat", concat, "c", **({"axis": 1} | attributes)),
        node("QuantizeLinear", "c t o", "r"),
        node("DequantizeLinear", "r t o", "e"),
        *behind,
    ]
    used = {name for item in nodes for name in item.input}
    constants = {name: value for name, value in PARAMETERS.items() if name in used}
    inputs = {name: shape for name, shape in IMAGE.items() if name in used}
    return model(nodes, inputs, dict.fromkeys(results), constants)


@pytest.mark.parametrize(
    "before",
    [
        joined(),
        joined("real d", axis=-1),
        joined("d real d real2", before=(FLOATS, node("Erf", "y", "real2"))),
        joined("d table", before=()),
        joined(results=("e", "real")),
        joined("d real", node("QuantizeLinear", "c t o", "r2"), node("DequantizeLinear", "r2 t o", "e2"),
               results=("e", "e2")),
    ],
    ids=["two", "the other way, last axis", "four", "a constant", "floats that others read", "two quantizers"],
)  # fmt: skip
def test_floats_are_quantized_in_front(before, tmp_path):
    after = run(before, [ConcatsOnCodes()])
    made = {name: item.op_type for item in after.graph.node for name in item.output}
    concat = next(item for item in after.graph.node if item.op_type == "Concat")
    assert {made[name] for name in concat.input} == {"DequantizeLinear"}
    feeds = {value.name: 3 * f(2, 3, 8, 8) for value in before.graph.input}
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        for ours, theirs in zip(outputs(after, feeds, level), outputs(before, feeds), strict=True):
            assert np.array_equal(ours, theirs) and theirs.std() > 0.01
    assert "QLinearConcat" not in operators_run(before, tmp_path)
    assert {"QLinearConcat"} <= set(operators_run(after, tmp_path)) and "Concat" not in operators_run(after, tmp_path)
    assert run(after, [ConcatsOnCodes()]) is after


@pytest.mark.parametrize(
    "before",
    [
        joined("d real", results=("e", "c")),
        joined("d real", node("Abs", "c", "a"), results=("e", "a")),
        joined("d real", node("QuantizeLinear", "c s z", "r2"), node("DequantizeLinear", "r2 s z", "e2"),
               results=("e", "e2")),
        joined("real real2", before=(FLOATS, node("Erf", "y", "real2")), results=("e", "d")),
        joined("d d2", before=(node("DequantizeLinear", "q t z", "d2"),)),
    ],
    ids=["an output", "a float reader", "two scales", "no codes", "codes alone"],
)  # fmt: skip
def test_what_stays(before):
    assert_left_alone(ConcatsOnCodes(), before)
