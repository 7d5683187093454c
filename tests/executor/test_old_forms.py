"""The forms that operators had in opsets 7 to 12, against onnxruntime."""

import numpy as np
import pytest
from onnx import TensorProto

from .cases.drawing import i64
from .graphs import f
from .parity import case, x4

INT = TensorProto.INT64


def old(op_type, *arrays, since=7, before=13, **keywords):
    """A form of an operator that was valid in each of opsets `since` to `before` - 1."""
    return case(op_type, *arrays, opsets=range(since, before), **keywords)


OLD_FORMS = [
    *old("Softmax", f(2, 3, 4)),
    *old("Softmax", f(2, 3, 4), axis=2),
    *old("LogSoftmax", f(2, 3, 4), axis=0),
    *old("Hardmax", f(2, 3, 4)),
    *old("Hardmax", f(2, 3, 4), axis=0),
    *old("Softmax", f(2, 3, 4), axis=-2, since=11),
    *old("Squeeze", f(2, 1, 3, 1), axes=[1, 3]),
    *old("Squeeze", f(2, 1, 3, 1)),
    *old("Unsqueeze", f(2, 3), axes=[3, 0]),
    *old("Split", f(2, 6), axis=1, split=[1, 3, 2], outputs=3),
    *old("Split", f(6, 2), outputs=2),
    *[
        c
        for name in ("Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum", "LogSumExp")
        for c in old(f"Reduce{name}", np.abs(f(2, 3, 4)) + 0.1, axes=[0, 2], keepdims=0)
    ],
    *old("ReduceSum", f(2, 3, 4), axes=[-1], since=11),
    *old("ArgMax", f(2, 3, 4), axis=1, keepdims=0, kind=INT),
    *old("ArgMin", f(2, 3, 4), kind=INT),
    *old("TopK", f(3, 6), k=2, outputs=2, before=10, kind=[TensorProto.FLOAT, INT]),
    *old("TopK", f(3, 6), i64(2), const=(1,), axis=0, outputs=2, since=10, kind=[TensorProto.FLOAT, INT]),
    *old("Slice", f(5, 6), starts=[1, -4], ends=[4, 100], axes=[0, 1], before=10),
    *old("Slice", f(5, 6), i64(4), i64(-9), i64(1), i64(-2), const=(1, 2, 3, 4), since=10),
    *old("Pad", f(2, 3), pads=[0, 1, 2, 0], value=1.5, before=11),
    *old("Pad", f(4, 3), pads=[1, 2, 2, 1], mode="reflect", before=11),
    *old("Pad", f(4, 3), i64(1, 2, 2, 1), const=(1,), mode="edge", since=11),
    *old("Clip", f(3, 4), min=-0.5, before=11),
    *old("Clip", f(3, 4), max=0.4, before=11),
    *old("Clip", f(3, 4), np.float32(-0.5), const=(1,), since=11),
    *old("Dropout", f(3, 4), ratio=0.3, before=12),
    *old("Dropout", f(3, 4), np.float32(0.3), const=(1,), since=12),
    *old("Upsample", f(1, 2, 3, 4), scales=[1.0, 1.0, 2.0, 2.0], before=9),
    *old("BatchNormalization", f(2, 3, 4), f(3), f(3), f(3), np.abs(f(3))),
    *old("BatchNormalization", x4, *[f(6, 9, 8)] * 3, np.abs(f(6, 9, 8)), spatial=0, before=9),
    *[c for name in ("Add", "Sub", "Mul", "Div") for c in old(name, f(2, 3, 4), f(3, 1))],
    *[c for name in ("Max", "Min", "Mean", "Sum") for c in old(name, f(2, 3), f(1, 3), f(2, 1), since=8)],
    *old("Pow", np.abs(f(2, 3)), f(3)),
    *old("PRelu", f(2, 3, 4), f(3, 1)),
    *old("Gemm", f(3, 5), f(4, 5), f(3, 1), transB=1, beta=0.5),
    *old("Gemm", f(3, 5), f(5, 4), since=11),
    *old("Flatten", x4, axis=2),
    *old("Flatten", x4, axis=-1, since=11),
    *old("Concat", f(2, 3), f(2, 1), axis=1),
    *old("Gather", f(4, 5), i64(1, 0), axis=1),
    *old("Gather", f(4, 5), i64(-1, 0), axis=-1, since=11),
    *old("Scatter", f(3, 3), np.array([[0, 2, 1]]), f(1, 3), since=9, before=11),
    *old("OneHot", i64(1, 2), np.int64(4), np.array([0.5, 2], np.float32), const=(1,), since=9),
    *old("MaxPool", x4, kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2], auto_pad="NOTSET"),
    *old("MaxPool", x4, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, since=10),
    *old("MaxPool", x4, kernel_shape=[2, 3], auto_pad="SAME_LOWER", outputs=2, since=8, kind=[TensorProto.FLOAT, INT]),
    *old("AveragePool", x4, kernel_shape=[3, 3], pads=[1, 0, 1, 0], strides=[2, 1]),
    *old("AveragePool", x4, kernel_shape=[3, 3], pads=[1, 0, 1, 0], count_include_pad=1),
    *old("AveragePool", x4, kernel_shape=[3, 2], strides=[2, 2], ceil_mode=1, since=10),
    *old("LpPool", x4, kernel_shape=[3, 2], pads=[1, 0, 1, 0], strides=[2, 1], p=3),
    *old("GlobalLpPool", x4, p=3),
    *old("DepthToSpace", f(1, 8, 2, 3), blocksize=2),
    *old("LRN", x4, size=3),
    *old("LpNormalization", f(2, 3), axis=0),
    *old("MeanVarianceNormalization", x4, axes=[0, 2], since=9),
    *old("InstanceNormalization", x4, f(6), f(6)),
    *old("ThresholdedRelu", f(3, 4), alpha=0.3, since=10),
    *old("Shrink", f(3, 4), bias=0.2, lambd=0.4, since=9),
    *old("EyeLike", f(3, 4), k=1, since=9),
    *old("Cast", 3 * f(3, 4), to=INT, kind=INT),
    *old("Mod", f(4), f(4), fmod=1, since=10),
    *old("IsInf", np.array([1, np.inf, -np.inf], np.float32), detect_negative=0, kind=TensorProto.BOOL, since=10),
    *old("Expand", f(3, 1), i64(2, 1, 4), since=8),
    *old("Tile", f(2, 3), i64(2, 2)),
    *old("Equal", i64(1, 2), i64(1, 3), kind=TensorProto.BOOL),
    *old("Greater", f(2, 3), f(3), kind=TensorProto.BOOL, since=9),
    *old("GRU", f(4, 2, 3), f(1, 6, 3), f(1, 6, 2), f(1, 12), hidden_size=2, linear_before_reset=1, outputs=2),
    *old(
        "LSTM", f(4, 2, 3), f(1, 8, 3), f(1, 8, 2), hidden_size=2, outputs=3, clip=0.3,
        activations=["HardSigmoid", "ScaledTanh", "Softsign"], activation_alpha=[0.3, 0.8], activation_beta=[0.4, 1.2],
    ),
    *old("RNN", f(4, 2, 3), f(2, 2, 3), f(2, 2, 2), hidden_size=2, direction="bidirectional", outputs=2),
]  # fmt: skip


@pytest.mark.parametrize("parity", OLD_FORMS)
def test_old_form(parity):
    parity()
