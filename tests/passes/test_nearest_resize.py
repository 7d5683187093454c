"""Nearest Resizes of codes: repeated blocks, the same codes in onnxruntime, what stays."""

import numpy as np
import onnx
import pytest
from onnx.shape_inference import infer_shapes
from small_graphs import assert_left_alone, f, model, node, operators, operators_run, outputs

from amq_onnx.passes.base import run
from amq_onnx.passes.nearest_resize import RepeatPixels

IMAGE = [2, 4, 5, 7]
CONSTANTS = {
    "s": np.float32(0.05),
    "z": np.uint8(120),
    "low": np.uint8(113),
    "high": np.uint8(128),
    "w": np.arange(-16, 16, dtype=np.int8).reshape(8, 4, 1, 1),
    "w0": np.ones((4, 4, 1, 1), np.int8),
    "sw": np.float32(0.02),
    "zw": np.int8(0),
    "empty": np.float32([]),
}
PYTORCH = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}


def resized(shape=IMAGE, scales=(1, 1, 2, 2), between=(), sizes=None, codes="q", opset=18, **attributes):
    """x -> Q -> codes -> Resize -> DQ -> Conv, where the image has four dimensions -> y"""
    flat = len(shape) == 4
    given = f"{codes} empty - sizes" if sizes is not None else f"{codes} - scales"
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        *between,
        node("Resize", given, "r", **attributes),
        node("DequantizeLinear", "r s z", "d" if flat else "y"),
    ]
    if flat:
        nodes += [node("DequantizeLinear", "w sw zw", "wd"), node("Conv", "d wd", "c")]
        nodes += [node("QuantizeLinear", "c s z", "cq"), node("DequantizeLinear", "cq s z", "y")]
    constants = CONSTANTS | {"scales": np.float32(scales), "sizes": np.array(sizes or [])}
    used = {name for item in nodes for name in item.input}
    constants = {name: value for name, value in constants.items() if name in used}
    return infer_shapes(model(nodes, {"x": shape}, {"y": None}, constants, opset=opset))


CLIPPED = [node("Clip", "q low high", "k")]


@pytest.mark.parametrize(
    ("before", "gathers"),
    [
        (resized(**PYTORCH), 2),
        (resized(mode="nearest"), 2),
        (resized(coordinate_transformation_mode="pytorch_half_pixel", nearest_mode="round_prefer_ceil"), 2),
        (resized(scales=(1, 1, 3, 4), **PYTORCH), 2),
        (resized(scales=(1, 1, 5, 3)), 2),
        (resized(scales=(1, 1, 1, 2), **PYTORCH), 1),
        (resized(sizes=(2, 4, 15, 14), **PYTORCH), 2),
        (resized(sizes=(2, 4, 10, 14), shape=["n", 4, 5, 7], **PYTORCH), 2),
        (resized(shape=["n", 4, "h", "w"], **PYTORCH), 2),
        (resized(shape=["n", 4, 5, "w"], scales=(1, 1, 2, 3), opset=13, **PYTORCH), 2),
        (resized(shape=[2, 4, 9], scales=(1, 1, 4), **PYTORCH), 1),
        (resized(shape=[2, 4, 2, 3, 4], scales=(1, 1, 2, 3, 2), **PYTORCH), 3),
        (resized(codes="k", between=CLIPPED, sizes=(2, 4, 10, 14), **PYTORCH), 2),
        (resized(codes="t", between=[node("Transpose", "q", "t", perm=[0, 1, 3, 2])], **PYTORCH), 2),
    ],
    ids=[
        *("as PyTorch", "by default", "half pixels", "others", "half pixels of others", "columns", "sizes"),
        *("sizes of free samples", "free sizes", "free columns", "one dimension", "three", "bounds", "moved"),
    ],
)
def test_pixels_are_repeated_in_blocks(before, gathers):
    after = run(before, [RepeatPixels()])
    kinds = operators(after)
    shaped = sum(item.op_type == "Gather" and "axis" not in {each.name for each in item.attribute}
                 for item in after.graph.node)  # fmt: skip
    assert "Resize" not in kinds and kinds.count("Gather") - shaped == gathers
    sizes = [size.dim_value or {"n": 2, "h": 5, "w": 7}[size.dim_param]
             for size in before.graph.input[0].type.tensor_type.shape.dim]  # fmt: skip
    feeds = {"x": 3 * f(*sizes)}
    for level in ("DISABLE_ALL", "ENABLE_ALL"):
        (ours,), (expected,) = outputs(after, feeds, level), outputs(before, feeds, level)
        assert np.array_equal(ours, expected) and expected.std() > 0.01
    assert run(after, [RepeatPixels()]) is after


def test_onnxruntime_puts_no_transposes_around_them(tmp_path):
    """Between convolutions nothing but the Gathers is left, and indices are computed at load."""
    second = [node("DequantizeLinear", "q s z", "d0"), node("DequantizeLinear", "w0 sw zw", "wd0")]
    second += [node("Conv", "d0 wd0", "c0"), node("QuantizeLinear", "c0 s z", "k")]
    found = operators_run(run(resized(codes="k", between=second, **PYTORCH), [RepeatPixels()]), tmp_path)
    assert found == [
        *("QuantizeLinear", "Transpose", "QLinearConv", "Gather", "Gather", "QLinearConv", "Transpose"),
        "DequantizeLinear",
    ]


def test_resizes_to_one_size_share_indices():
    second = [node("Resize", "q - scales", "r2", **PYTORCH), node("DequantizeLinear", "r2 s z", "y2")]
    before = resized(**PYTORCH)
    before.graph.node.extend(second)
    before.graph.output.append(onnx.helper.make_tensor_value_info("y2", 1, [2, 4, 10, 14]))
    kinds = operators(run(before, [RepeatPixels()]))
    assert kinds.count("Gather") == 4 and kinds.count("Range") == 2


@pytest.mark.parametrize(
    "before",
    [
        resized(scales=(1, 1, 1.5, 2), **PYTORCH),
        resized(scales=(1, 1, 0.5, 0.5), **PYTORCH),
        resized(scales=(2, 1, 2, 2), **PYTORCH),
        resized(scales=(1, 1, 1, 1), **PYTORCH),
        resized(shape=[2, 3, 9], scales=(1, 1, 2), **PYTORCH),
        resized(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="ceil"),
        resized(mode="nearest", coordinate_transformation_mode="align_corners"),
        resized(mode="nearest", nearest_mode="floor"),
        resized(sizes=(2, 4, 12, 14), **PYTORCH),
        resized(sizes=(2, 4, 10, 14), shape=["n", 4, "h", 7], **PYTORCH),
        model([node("Resize", "x - scales", "y", **PYTORCH)], {"x": IMAGE}, {"y": None},
              {"scales": np.float32([1, 1, 2, 2])}),
    ],
    ids=[
        *("no whole number", "smaller", "samples", "nothing", "few channels", "ceil", "corners"),
        *("floor of half pixels", "other sizes"),
        *("not known from what", "floats"),
    ],
)  # fmt: skip
def test_what_stays(before):
    assert_left_alone(RepeatPixels(), before)
