"""What runs on integer kernels, what is dequantized at load, and weights that stand elsewhere."""

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper
from small_graphs import assert_same_outputs, f, infos, initializers, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.dequantize_at_load import DequantizeAtLoad
from amq_onnx.passes.fold_constants import FoldConstants
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.kernels import is_integer
from amq_onnx.passes.place import PlaceOnCodes
from amq_onnx.passes.subgraphs import hoist_weights, subgraphs
from amq_onnx.quantizer.encoding import Encoding

CODES = {"codes": np.arange(-8, 8, dtype=np.int8).reshape(4, 4), "s": np.float32([0.1, 0.2, 0.3, 0.4])}
SQUARE = {"x": ["n", 4]}


def integer(nodes, constants, inputs):
    graph = gs.import_onnx(model(nodes, inputs, {"y": None}, constants))
    return {made.op: is_integer(made) for made in graph.nodes}


@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        ([node("QuantizeLinear", "c t", "q")], True),
        ([node("Relu", "c", "r"), node("QuantizeLinear", "r t", "q")], True),
        ([node("QuantizeLinear", "c t", "q"), node("Exp", "c", "e")], False),
        ([node("Exp", "c", "q")], False),
    ],
    ids=["quantized", "behind a Relu", "read in float too", "float"],
)
def test_a_conv_needs_a_quantizer_behind_it(behind, expected):
    nodes = [
        node("QuantizeLinear", "x t", "qx"),
        node("DequantizeLinear", "qx t", "dx"),
        node("DequantizeLinear", "w t", "dw"),
        node("Conv", "dx dw", "c"),
        *behind,
        node("Identity", "q", "y"),
    ]
    constants = {"w": np.ones((4, 3, 2, 2), np.uint8), "t": np.float32(0.1)}
    kind = None if behind[-1].op_type == "Exp" and len(behind) == 1 else (TensorProto.UINT8, None)
    graph = gs.import_onnx(model(nodes, {"x": ["n", 3, 5, 5]}, {"y": kind}, constants))
    assert [is_integer(made) for made in graph.nodes if made.op == "Conv"] == [expected]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("between", [[], [node("Transpose", "codes", "t", perm=[1, 0])]], ids=["itself", "transposed"])
def test_a_constant_that_no_integer_kernel_reads_is_dequantized_at_load(axis, between):
    read = "t" if between else "codes"
    nodes = [*between, node("DequantizeLinear", f"{read} s", "w", axis=axis), node("MatMul", "x w", "y")]
    before = model(nodes, SQUARE, {"y": None}, CODES)
    after = run(before, [DequantizeAtLoad()])
    assert operators(after) == [*(["Transpose"] if between else []), "Cast", "Mul", "MatMul"]
    assert_same_outputs(before, after, {"x": f(3, 4)})
    assert run(after, [DequantizeAtLoad()]) is after


@pytest.mark.parametrize("scale", ["s", "one"])
def test_rows_that_a_gather_picks_are_dequantized_as_they_are(scale):
    along = {"axis": -1} if scale == "s" else {}
    nodes = [
        node("Gather", "codes i", "rows"),
        node("DequantizeLinear", f"rows {scale}", "e", **along),
        node("Exp", "e", "y"),
    ]
    before = model(nodes, {"i": (TensorProto.INT64, ["n", 3])}, {"y": None}, CODES | {"one": np.float32(0.3)})
    after = run(before, [DequantizeAtLoad()])
    assert operators(after) == ["Gather", "Cast", "Mul", "Exp"]
    assert_same_outputs(before, after, {"i": np.array([[0, 3, 1]])})


@pytest.mark.parametrize("reads", ["codes s zero", "given s"], ids=["a zero point", "not a constant"])
def test_what_can_not_be_dequantized_at_load(reads):
    constants = CODES | {"zero": np.ones(4, np.int8)}
    nodes = [node("DequantizeLinear", reads, "w"), node("MatMul", "x w", "y")]
    before = model(nodes, SQUARE | {"given": (TensorProto.INT8, [4, 4])}, {"y": None}, constants)
    assert run(before, [DequantizeAtLoad()]) is before


def test_a_constant_on_an_integer_kernel_stays_dequantized_there():
    nodes = [
        node("QuantizeLinear", "x t", "q"),
        node("DequantizeLinear", "q t", "d"),
        node("DequantizeLinear", "codes s", "w"),
        node("MatMul", "d w", "y"),
    ]
    before = model(nodes, SQUARE, {"y": None}, CODES | {"t": np.float32(0.1)})
    assert run(before, [DequantizeAtLoad()]) is before


@pytest.mark.parametrize(
    ("carrier", "axis", "moves"),
    [
        (node("Transpose", "w", "t", perm=[1, 0]), 0, True),
        (node("Gather", "w i", "t"), 1, True),
        (node("Gather", "w i", "t"), 0, False),
        (node("Flatten", "w", "t"), 1, False),
    ],
    ids=["transposed", "rows of scales a column", "rows of scales a row", "flattened"],
)
def test_scales_along_an_axis_follow_it(carrier, axis, moves):
    before = model([carrier, node("Neg", "t", "y")], {"i": (TensorProto.INT64, [2])}, {"y": None}, {"w": f(3, 4)})
    encoding = Encoding(8, True, np.float32(np.arange(1, (3, 4)[axis] + 1) / 50), axis=axis)
    inserted = run(before, [InsertQDQ({"w": encoding})])
    after = run(inserted, [PlaceOnCodes()])
    assert (
        operators(after).index(carrier.op_type) < operators(after).index("DequantizeLinear")
        if moves
        else (after is inserted)
    )
    assert_same_outputs(inserted, after, {"i": np.array([2, 0])})


def test_the_transpose_of_a_constant_that_others_read_is_not_stored_twice():
    nodes = [
        node("Transpose", "w", "t", perm=[1, 0]),
        node("MatMul", "x w", "a"),
        node("MatMul", "a t", "y"),
    ]
    before = model(nodes, SQUARE, {"y": None}, {"w": f(4, 4)})
    assert run(before, [FoldConstants()]) is before


def looped():
    body = helper.make_graph(
        [
            helper.make_node("Constant", [], ["v"], value=helper.make_tensor("", TensorProto.FLOAT, [4, 4], f(16))),
            helper.make_node("MatMul", ["h", "v"], ["m"]),
            helper.make_node("MatMul", ["m", "w"], ["next"]),
            helper.make_node("Identity", ["c"], ["go"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            *infos({"h": None}),
        ],
        [helper.make_tensor_value_info("go", TensorProto.BOOL, []), *infos({"next": None})],
    )
    nodes = [helper.make_node("Loop", ["n", "", "x"], ["z"], body=body), node("Relu", "z", "y")]
    return model(nodes, SQUARE, {"y": ["n", 4]}, {"n": np.array(2), "w": f(4, 4)})


def test_weights_of_subgraphs_move_out_and_the_numbers_stay():
    before = looped()
    after = hoist_weights(before)
    assert set(initializers(after)) == {"n", "w", "v"}
    assert not any(item.op_type == "Constant" for inner in subgraphs(after.graph) for item in inner.node)
    assert_same_outputs(before, after, {"x": f(3, 4)})
    assert hoist_weights(after) is after


def test_constants_that_subgraphs_capture_are_stored_once_after_any_pass():
    before = hoist_weights(looped())
    encodings = {"x": Encoding(8, False, np.float32(0.05), 128)}
    after = run(before, [InsertQDQ(encodings)])
    assert {"n", "w", "v"} <= set(initializers(after))
    assert not any(inner.initializer for inner in subgraphs(after.graph))


def test_quantized_weights_of_subgraphs_are_read_there():
    before = hoist_weights(looped())
    after = run(before, [InsertQDQ({"v": Encoding(8, True, np.float32(0.02))})])
    rounded = np.clip(np.rint(initializers(before)["v"] / np.float32(0.02)), -128, 127) * np.float32(0.02)
    w, x = initializers(before)["w"], f(3, 4)
    expected = np.maximum(x @ rounded @ w @ rounded @ w, 0)
    from small_graphs import outputs

    np.testing.assert_allclose(outputs(after, {"x": x})[0], expected, rtol=1e-4, atol=1e-4)
