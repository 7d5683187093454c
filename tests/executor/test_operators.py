"""Operator by operator against onnxruntime, over the opsets in which an operator changed its form."""

import numpy as np
import pytest
from onnx import TensorProto

from .graphs import assert_parity, single

rng = np.random.default_rng(0)


def f(*shape):
    return rng.standard_normal(shape).astype(np.float32)


def i64(*values):
    return np.array(values, np.int64)


def case(op_type, *arrays, const=(), opsets=(18,), **keywords):
    """One operator; positions in `const` are initializers, None is an input left out."""
    named = {f"x{i}": np.zeros(0, np.float32) if a is None else a for i, a in enumerate(arrays)}
    absent = [f"x{i}" for i, a in enumerate(arrays) if a is None]
    constants = {f"x{i}": True for i in const}
    return [
        pytest.param(op_type, named, constants, absent, opset, keywords, id=f"{op_type}-{opset}-{case.count()}")
        for opset in opsets
    ]


case.number = 0


def _count():
    case.number += 1
    return case.number


case.count = _count

x4 = f(2, 6, 9, 8)
INT, UINT8 = TensorProto.INT64, TensorProto.UINT8
CASES = [
    # convolutions and products
    *case("Conv", x4, f(4, 6, 3, 3), f(4), opsets=(7, 11, 22), pads=[1, 1, 1, 1], strides=[2, 1]),
    *case("Conv", x4, f(6, 2, 3, 2), pads=[2, 0, 0, 1], group=3, dilations=[2, 1]),
    *case("Conv", x4, f(4, 6, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    *case("Conv", x4, f(4, 6, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    *case("Conv", f(2, 3, 11), f(4, 3, 3), f(4), strides=[2]),
    *case("Conv", f(1, 2, 5, 6, 4), f(3, 2, 2, 3, 2), pads=[1, 0, 0, 0, 1, 1]),
    *case("ConvTranspose", x4, f(6, 4, 3, 3), f(4), strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]),
    *case("ConvTranspose", x4, f(6, 2, 3, 3), f(4), group=2, strides=[2, 3], pads=[0, 1, 2, 0]),
    *case("ConvTranspose", x4, f(6, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    *case("ConvTranspose", x4, f(6, 4, 3, 3), f(4), strides=[2, 2], output_shape=[18, 16]),
    *case("Gemm", f(3, 5), f(4, 5), f(4), transB=1, opsets=(7, 13)),
    *case("Gemm", f(5, 3), f(5, 4), f(3, 1), transA=1, alpha=0.5, beta=2.0),
    *case("Gemm", f(3, 5), f(5, 4)),
    *case("MatMul", f(2, 1, 3, 5), f(4, 5, 2)),
    *case("MatMul", f(5), f(5, 2)),
    *case("Einsum", f(2, 3, 4), f(2, 4, 5), equation="bij, bjk -> bik"),
    # pooling
    *case("MaxPool", x4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], opsets=(8, 12, 22)),
    *case("MaxPool", x4, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1),
    *case("MaxPool", x4, kernel_shape=[3, 3], pads=[0, 1, 2, 0], dilations=[2, 1], strides=[2, 1]),
    *case("MaxPool", x4, kernel_shape=[2, 2], auto_pad="SAME_UPPER", strides=[2, 2]),
    *case(
        "MaxPool", x4, kernel_shape=[3, 3], pads=[1, 0, 1, 1], strides=[2, 2], outputs=2,
        kind=[TensorProto.FLOAT, INT],
    ),
    *case("MaxPool", np.arange(72, dtype=np.uint8).reshape(1, 2, 6, 6), kernel_shape=[2, 2], kind=UINT8),
    *case("AveragePool", x4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], opsets=(7, 11, 22)),
    *case("AveragePool", x4, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    *case("AveragePool", x4, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    *case(
        "AveragePool", x4, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 0, 1], ceil_mode=1,
        count_include_pad=1,
    ),
    *case("AveragePool", x4, kernel_shape=[2, 2], auto_pad="SAME_LOWER"),
    *case("AveragePool", x4, kernel_shape=[2, 3], dilations=[2, 2], opsets=(19,)),
    *case("LpPool", x4, kernel_shape=[2, 2], strides=[2, 2]),
    *case("GlobalAveragePool", x4),
    *case("GlobalMaxPool", x4),
    # normalization
    *case("BatchNormalization", x4, f(6), f(6), f(6), np.abs(f(6)), opsets=(7, 9, 14, 15)),
    *case("InstanceNormalization", x4, f(6), f(6)),
    *case("GroupNormalization", x4, f(6), f(6), num_groups=3, opsets=(21,)),
    *case("LayerNormalization", f(2, 5, 7), f(7), f(7), opsets=(17, 23)),
    *case("LayerNormalization", f(2, 5, 7), f(5, 7), axis=1, outputs=3, epsilon=1e-3),
    *case("RMSNormalization", f(2, 5, 7), f(7), opsets=(23,)),
    *case("LRN", x4, size=5, alpha=0.1, beta=0.5, bias=2.0),
    *case("LRN", x4, size=3),
    *case("Softmax", f(2, 3, 4), opsets=(7, 11, 13)),
    *case("Softmax", f(2, 3, 4), axis=1, opsets=(11, 13)),
    *case("LogSoftmax", f(2, 3, 4), opsets=(11, 13)),
    *case("LpNormalization", f(2, 3), axis=1, p=1),
    # activations with attributes
    *case("Clip", f(3, 4), opsets=(7, 10), min=-0.5, max=0.4),
    *case("Clip", f(3, 4), np.float32(-0.5), np.float32(0.4), const=(1, 2), opsets=(11, 13)),
    *case("Clip", f(3, 4), np.float32(-0.5), np.float32(0.4)),
    *case("Clip", f(3, 4), None, np.float32(0.4)),
    *case("Clip", i64(-5, 0, 7), np.int64(-1), np.int64(3), kind=INT),
    *case("PRelu", f(2, 3, 4), f(3, 1)),
    *case("LeakyRelu", f(3, 4), alpha=0.2),
    *case("Elu", f(3, 4), alpha=0.7),
    *case("Selu", f(3, 4)),
    *case("HardSigmoid", 4 * f(3, 4)),
    *case("HardSwish", 4 * f(3, 4)),
    *case("Gelu", f(3, 4), opsets=(20,)),
    *case("Gelu", f(3, 4), approximate="tanh", opsets=(20,)),
    *case("Mish", f(3, 4)),
    *case("ThresholdedRelu", f(3, 4), alpha=0.3),
    *case("Dropout", f(3, 4), opsets=(7, 10)),
    *case("Dropout", f(3, 4), np.float32(0.5), const=(1,), opsets=(12, 22)),
    # shapes
    *case("Reshape", x4, i64(0, -1, 4), const=(1,), opsets=(7, 14)),
    *case("Reshape", x4, i64(0, -1, 4)),
    *case("Flatten", x4, axis=-2),
    *case("Transpose", x4, perm=[0, 2, 3, 1]),
    *case("Squeeze", f(2, 1, 3, 1), axes=[1, 3], opsets=(7, 11)),
    *case("Squeeze", f(2, 1, 3, 1), i64(-1), const=(1,), opsets=(13,)),
    *case("Squeeze", f(2, 1, 3, 1)),
    *case("Unsqueeze", f(2, 3), axes=[0, 3], opsets=(7, 11)),
    *case("Unsqueeze", f(2, 3), i64(3, 0), const=(1,), opsets=(13,)),
    *case("Concat", f(2, 3), f(2, 1), f(2, 2), axis=-1),
    *case("Split", f(2, 6), axis=1, split=[2, 4], outputs=2, opsets=(7, 11)),
    *case("Split", f(2, 6), i64(2, 4), const=(1,), axis=1, outputs=2, opsets=(13,)),
    *case("Split", f(7, 2), num_outputs=3, outputs=3, opsets=(18,)),
    *case("Slice", f(5, 6), starts=[1, -4], ends=[4, 100], axes=[0, 1], opsets=(7,)),
    *case("Slice", f(5, 6), i64(-1, 4), i64(-100, 0), i64(0, 1), i64(-2, -1), opsets=(10, 13)),
    *case("Pad", f(2, 3), pads=[0, 1, 2, 0], value=1.5, opsets=(7,)),
    *case("Pad", f(2, 3), i64(0, 1, 2, 0), np.float32(1.5), const=(1, 2), opsets=(11, 13)),
    *case("Pad", f(4, 5), i64(1, 2, 3, 1), mode="reflect"),
    *case("Pad", f(4, 5), i64(1, 2, 3, 1), mode="edge"),
    *case("Pad", f(4, 5), i64(1, 2, 3, 1), mode="wrap", opsets=(19,)),
    *case("Pad", f(4, 5), i64(-1, 2), None, i64(1), const=(1, 3), opsets=(18,)),
    *case("Expand", f(3, 1), i64(2, 1, 4)),
    *case("Tile", f(2, 3), i64(2, 2)),
    *case("DepthToSpace", f(1, 8, 2, 3), blocksize=2, mode="DCR"),
    *case("DepthToSpace", f(1, 8, 2, 3), blocksize=2, mode="CRD"),
    *case("SpaceToDepth", f(1, 2, 4, 6), blocksize=2),
    *case("Trilu", f(4, 5), np.int64(1), upper=0),
    *case("OneHot", i64(1, -1, 9), np.int64(4), np.array([0.5, 2], np.float32), const=(1,), axis=0),
    *case("Range", np.float32(1), np.float32(3), np.float32(0.3)),
    *case("ConstantOfShape", i64(2, 3)),
    *case("Shape", f(2, 3, 4), start=1, kind=INT),
    *case("Size", f(2, 3), kind=INT),
    # indexing
    *case("Gather", f(4, 5), i64(-1, 0), axis=1),
    *case("Gather", f(4, 5), np.int64(2), const=(1,)),
    *case("Gather", f(4, 5), np.array([[0, 1], [2, -2]]), const=(1,)),
    *case("GatherElements", f(3, 3), np.array([[0, -1, 2], [1, 1, 0]]), axis=0),
    *case("GatherND", f(2, 3, 4), np.array([[[0, 1]], [[2, -1]]]), batch_dims=1),
    *case("ScatterElements", f(3, 3), np.array([[0, 2, 2]]), f(1, 3), axis=0, reduction="add"),
    *case("ScatterElements", f(3, 3), np.array([[0, -1, 1]]), f(1, 3), axis=0),
    *case("ScatterND", f(4, 3), np.array([[1], [3]]), f(2, 3)),
    *case("ScatterND", f(4, 3), np.array([[1], [1]]), f(2, 3), reduction="max"),
    *case("TopK", f(3, 6), i64(2), outputs=2, axis=1, kind=[TensorProto.FLOAT, INT]),
    *case("TopK", f(3, 6), i64(2), outputs=2, axis=0, largest=0, kind=[TensorProto.FLOAT, INT]),
    *case("ArgMax", np.array([[1, 3, 3], [2, 2, 0]], np.float32), axis=1, kind=INT),
    *case("ArgMax", np.array([[1, 3, 3]], np.float32), axis=1, select_last_index=1, keepdims=0, kind=INT),
    *case("ArgMin", f(3, 4), axis=0, kind=INT),
    *case("NonZero", np.array([[0, 2], [3, 0]], np.float32), kind=INT),
    *case("Where", np.array([True, False]), f(2), f(3, 2)),
    *case("CumSum", f(3, 4), np.int64(1), exclusive=1, reverse=1),
    # integers
    *case("Div", i64(7, -7), i64(2, 2), kind=INT),
    *case("Mod", i64(7, -7), i64(3, 3), kind=INT),
    *case("Mod", f(4), np.abs(f(4)), fmod=1),
    *case("Pow", np.abs(f(4)), f(4)),
    *case("Pow", f(4), np.float32(2), const=(1,)),
    *case(
        "BitShift", np.array([1, 255], np.uint8), np.array([3, 4], np.uint8), direction="LEFT",
        kind=TensorProto.UINT8,
    ),
    # resizing
    *case("Upsample", f(1, 2, 3, 4), np.array([1, 1, 2, 2], np.float32), const=(1,), opsets=(9,)),
    *case("Resize", f(1, 2, 3, 4), np.array([1, 1, 2, 1.5], np.float32), const=(1,), opsets=(10,)),
]  # fmt: skip

RESIZE = [
    {"mode": mode, "coordinate_transformation_mode": transformation}
    for mode in ("nearest", "linear", "cubic")
    for transformation in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
] + [{"mode": "linear", "antialias": 1}, {"mode": "cubic", "antialias": 1}]


@pytest.mark.parametrize(("op_type", "arrays", "constants", "absent", "opset", "keywords"), CASES)
def test_operator(op_type, arrays, constants, absent, opset, keywords):
    proto = single(op_type, arrays, constants=constants, absent=absent, opset=opset, **keywords)
    feeds = {n: a for n, a in arrays.items() if n not in constants and n not in absent}
    assert_parity(proto, feeds)


@pytest.mark.parametrize("attributes", RESIZE, ids=lambda a: "-".join(str(v) for v in a.values()))
@pytest.mark.parametrize("sizes", [(7, 9), (3, 4)])
def test_resize(attributes, sizes):
    arrays = {"x": f(1, 2, 5, 6), "r": f(0), "s": f(0), "z": i64(1, 2, *sizes)}
    proto = single("Resize", arrays, constants={"z": True}, absent=("r", "s"), opset=19, **attributes)
    assert_parity(proto, {"x": arrays["x"]})


UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Ceil",
    "Cos",
    "Cosh",
    "Erf",
    "Exp",
    "Floor",
    "Log",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tan",
    "Tanh",
]


@pytest.mark.parametrize("op_type", UNARY)
def test_unary(op_type):
    x = np.linspace(-0.9, 0.9, 13).astype(np.float32)
    x = np.abs(x) + 0.1 if op_type in ("Log", "Sqrt", "Reciprocal") else x + 2 if op_type == "Acosh" else x
    assert_parity(single(op_type, {"x": x}), {"x": x})


@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"])
def test_arithmetic(op_type):
    arrays = {"a": f(2, 3, 1), "b": f(3, 4)}
    assert_parity(single(op_type, arrays), arrays)


@pytest.mark.parametrize("op_type", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparison(op_type):
    arrays = {"a": np.array([1, 2, 3], np.float32), "b": np.array([3, 2, 1], np.float32)}
    assert_parity(single(op_type, arrays, kind=TensorProto.BOOL), arrays)


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(op_type):
    arrays = {"a": np.array([True, True, False]), "b": np.array([True, False, False])}
    assert_parity(single(op_type, arrays, kind=TensorProto.BOOL), arrays)


REDUCTIONS = ["Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp"]


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("keep", [0, 1])
def test_reduction(name, opset, keep):
    arrays = {"x": np.abs(f(2, 3, 4)) + 0.1}
    if opset < 13:
        proto = single(f"Reduce{name}", arrays, opset=opset, axes=[0, -1], keepdims=keep)
    else:
        proto = single(
            f"Reduce{name}",
            arrays | {"axes": i64(0, -1)},
            constants={"axes": True},
            opset=opset,
            keepdims=keep,
        )
    assert_parity(proto, arrays)
    assert_parity(single(f"Reduce{name}", arrays, opset=opset, keepdims=keep), arrays)


@pytest.mark.parametrize("op_type", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("full", [False, True])
def test_recurrent(op_type, direction, full):
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op_type]
    count, hidden = (2 if direction == "bidirectional" else 1), 3
    arrays = {"x": f(5, 2, 4), "w": f(count, gates * hidden, 4), "r": f(count, gates * hidden, hidden)}
    attributes = {"hidden_size": hidden, "direction": direction}
    if full:
        arrays |= {
            "b": f(count, 2 * gates * hidden), "l": np.array([5, 3], np.int32), "h": f(count, 2, hidden)
        }  # fmt: skip
        if op_type == "LSTM":
            arrays |= {"c": f(count, 2, hidden), "p": f(count, 3 * hidden)}
        if op_type == "GRU":
            attributes["linear_before_reset"] = 1
    outputs = 3 if op_type == "LSTM" else 2
    assert_parity(single(op_type, arrays, outputs=outputs, **attributes), arrays)
