"""Operator by operator against onnxruntime, over the opsets in which an operator changed its form."""

import numpy as np
import pytest
from onnx import TensorProto

from amq_onnx.executor.ops import sampling

from .cases.drawing import i64
from .graphs import assert_parity, f, run, single
from .parity import case, x4

INT, UINT8 = TensorProto.INT64, TensorProto.UINT8
CASES = [
    # convolutions and products
    *case("Conv", x4, f(4, 6, 3, 3), f(4), opsets=(7, 11, 22), pads=[1, 1, 1, 1], strides=[2, 1]),
    *case("Conv", x4, f(6, 2, 3, 2), pads=[2, 0, 0, 1], group=3, dilations=[2, 1]),
    *case("Conv", x4, f(4, 6, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    *case("Conv", x4, f(4, 6, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2]),
    *case("Conv", x4, f(4, 6, 1, 1), f(4)),
    *case("Conv", x4, f(4, 6, 1, 1), pads=[0, 1, 1, 0]),
    *case("Conv", x4, f(4, 6, 1, 1), f(4), strides=[2, 1]),
    *case("Conv", x4, f(6, 1, 1, 1), f(6), group=6),
    *case("Conv", x4, f(6, 1, 1, 1), group=6, pads=[1, 0, 0, 1]),
    *case("Conv", x4, f(6, 1, 1, 1), group=6, strides=[1, 2]),
    *case("Conv", x4, f(12, 1, 1, 1), f(12), group=6),
    *case("Conv", f(2, 3, 11), f(3, 1, 1), f(3), group=3),
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
    *case("Upsample", f(1, 2, 3, 4), scales=[1.0, 1.0, 2.0, 3.0], mode="linear", opsets=(7, 8)),
    *case("Resize", f(1, 2, 3, 4), np.array([1, 1, 2, 1.5], np.float32), const=(1,), opsets=(10,)),
    *case("Resize", f(1, 2, 3, 4), np.array([1, 1, 2, 2.5], np.float32), const=(1,), mode="linear", opsets=(10,)),
    *case(
        "Resize", f(1, 1, 4, 5), np.array([0, 0, 0.2, 0.1, 1, 1, 0.9, 1.2], np.float32), None, i64(1, 1, 3, 6),
        const=(1, 3), mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0,
        opsets=(13,),
    ),
    # positions between elements
    *[
        c
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
        for aligned in (0, 1)
        for c in case(
            "GridSample", f(2, 3, 5, 4), 1.5 * np.tanh(f(2, 3, 6, 2)), mode=mode, padding_mode=padding,
            align_corners=aligned, opsets=(16,),
        )
    ],
    *case("GridSample", f(2, 3, 4, 5, 3), np.tanh(f(2, 2, 3, 2, 3)), mode="linear", opsets=(20,)),
    *case("AffineGrid", f(2, 2, 3), i64(2, 3, 4, 5), const=(1,), opsets=(20,)),
    *case("AffineGrid", f(2, 3, 4), i64(2, 3, 4, 5, 2), const=(1,), align_corners=1, opsets=(20,)),
    *case(
        "DeformConv", f(2, 4, 6, 7), f(6, 2, 3, 2), f(2, 24, 3, 5), f(6), f(2, 12, 3, 5), group=2, offset_group=2,
        strides=[2, 1], pads=[1, 0, 1, 0], dilations=[1, 2], opsets=(19,),
    ),
    *[
        c
        for attributes in (
            {"sampling_ratio": 2}, {}, {"mode": "max", "sampling_ratio": 3},
            {"coordinate_transformation_mode": "output_half_pixel"},
        )
        for c in case(
            "RoiAlign", f(2, 3, 8, 9), np.array([[0, 0, 7, 6], [2, 3, 2.5, 30], [-9, 1, 4, 2]], np.float32),
            i64(1, 0, 1), output_height=3, output_width=2, spatial_scale=0.7, opsets=(16,), **attributes,
        )
    ],
    *case(
        "RoiAlign", f(1, 2, 6, 6), np.array([[1, 1, 4, 5]], np.float32), i64(0), output_height=2, output_width=2,
        opsets=(10,),
    ),
    *case(
        "MaxRoiPool", f(2, 3, 8, 9), np.array([[1, 0, 0, 7, 6], [0, 2, 3, 2, 30]], np.float32), pooled_shape=[3, 2],
        spatial_scale=0.7, opsets=(7,),
    ),
    *case(
        "NonMaxSuppression", np.sort(f(2, 30, 4), -1), f(2, 3, 30), i64(8), np.array([0.4], np.float32),
        np.array([-0.5], np.float32), kind=INT, opsets=(10, 11),
    ),
    *case(
        "NonMaxSuppression", np.abs(f(1, 30, 4)), f(1, 1, 30), i64(30), np.array([0.2], np.float32),
        center_point_box=1, kind=INT, opsets=(11,),
    ),
    *case(
        "MaxUnpool", f(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]]), kernel_shape=[2, 2], strides=[2, 2],
        opsets=(9, 11),
    ),
    *case("Col2Im", f(2, 12, 16), i64(5, 6), i64(2, 2), const=(1, 2), strides=[1, 2], pads=[0, 1, 0, 1]),
    *case("CenterCropPad", f(3, 5, 4), i64(6, 2), const=(1,), axes=[2, 1]),
    # signals
    *case("DFT", f(2, 8, 3, 1), opsets=(17,)),
    *case("DFT", f(2, 8, 3, 2), np.int64(10), const=(1,), axis=2, inverse=1, opsets=(17,)),
    *case("DFT", f(2, 8, 3, 1), None, np.int64(-2), const=(2,), onesided=1, opsets=(20,)),
    *case("STFT", f(2, 20, 1), np.int64(4), f(8), np.int64(8), const=(1, 3), opsets=(17,)),
    *case("STFT", f(2, 20, 1), np.int64(3), None, np.int64(6), const=(1, 3), onesided=0, opsets=(17,)),
    *[c for name in ("Hann", "Hamming", "Blackman") for periodic in (0, 1) for c in case(
        f"{name}Window", np.int64(7), const=(), periodic=periodic, opsets=(17,),
    )],
    *case(
        "MelWeightMatrix", np.int64(8), np.int64(64), np.int64(8192), np.float32(0), np.float32(4096), opsets=(17,),
    ),
    # losses
    *[c for reduction in ("none", "sum", "mean") for c in case(
        "SoftmaxCrossEntropyLoss", f(3, 5, 2), np.array([[0, 4], [2, 2], [1, 3]]), np.abs(f(5)), ignore_index=2,
        reduction=reduction, outputs=2, opsets=(12, 13),
    )],
    *case("NegativeLogLikelihoodLoss", f(3, 5), i64(0, 4, 2), np.abs(f(5)), opsets=(12, 13)),
    # counts of n-grams
    *[c for mode in ("TF", "IDF", "TFIDF") for c in case(
        "TfIdfVectorizer", np.array([[1, 2, 3, 2, 3, 1], [2, 2, 2, 3, 9, 2]]), mode=mode, min_gram_length=1,
        max_gram_length=2, max_skip_count=1, pool_int64s=[2, 3, 2, 3, 2, 2], ngram_counts=[0, 2],
        ngram_indexes=[0, 3, 1, 2], weights=[0.5, 2.0, 3.0, 4.0], opsets=(9,),
    )],
]  # fmt: skip

RESIZE = [
    {"mode": mode, "coordinate_transformation_mode": transformation}
    for mode in ("nearest", "linear", "cubic")
    for transformation in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
] + [{"mode": "linear", "antialias": 1}, {"mode": "cubic", "antialias": 1}]


@pytest.mark.parametrize("parity", CASES)
def test_operator(parity):
    parity()


@pytest.mark.parametrize("attributes", RESIZE, ids=lambda a: "-".join(str(v) for v in a.values()))
@pytest.mark.parametrize("sizes", [(7, 9), (3, 4)])
def test_resize(attributes, sizes):
    arrays = {"x": f(1, 2, 5, 6), "r": f(0), "s": f(0), "z": i64(1, 2, *sizes)}
    proto = single("Resize", arrays, constants={"z": True}, absent=("r", "s"), opset=19, **attributes)
    assert_parity(proto, {"x": arrays["x"]})


def test_regions_are_the_same_in_parts(monkeypatch):
    arrays = {"x": f(2, 3, 8, 9), "rois": np.abs(f(7, 4)) * 4, "batch": i64(1, 0, 1, 0, 0, 1, 1)}
    proto = single("RoiAlign", arrays, output_height=2, output_width=3)
    (whole,) = run(proto, arrays)
    monkeypatch.setattr(sampling, "_GATHERED", 500)
    np.testing.assert_array_equal(run(proto, arrays)[0].numpy(), whole.numpy())


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
