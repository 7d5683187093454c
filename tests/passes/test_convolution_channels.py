"""Quantized convolutions whose channels or groups suit no kernel: the graph afterwards, the same codes, what runs."""

import numpy as np
import onnx
import pytest
from small_graphs import (
    assert_left_alone,
    assert_same_outputs,
    f,
    model,
    node,
    operators,
    operators_run,
    outputs,
)

from amq_onnx.passes.align_inputs import AlignInputs
from amq_onnx.passes.base import run
from amq_onnx.passes.repeat_channels import RepeatChannels
from amq_onnx.passes.widen_groups import WidenGroups

STEPS = ["Pad", "Reshape", "Pad", "Reshape", "Slice", "Reshape"]
KERNEL = ["DequantizeLinear", "Conv", "QuantizeLinear", "DequantizeLinear"]


def grouped(groups, inputs, outputs, kernel=(3, 3), **attributes):
    """Codes of a Conv with groups of so many input and output channels, and feeds."""
    rng = np.random.default_rng(groups)
    weight = rng.integers(-127, 128, (groups * outputs, inputs, *kernel)).astype(np.int8)
    constants = {
        "s": np.float32(0.05),
        "z": np.uint8(120),
        "t": np.float32(2.0),
        "w": weight,
        "ws": rng.uniform(0.01, 0.02, groups * outputs).astype(np.float32),
        "wz": np.zeros(groups * outputs, np.int8),
    }
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w ws wz", "wd", axis=0),
        node("Conv", "d wd", "c", group=groups, **attributes),
        node("QuantizeLinear", "c t z", "cq"),
        node("DequantizeLinear", "cq t z", "y"),
    ]
    size = [max(6, *kernel)] * len(kernel)
    made = model(nodes, {"x": ["n", groups * inputs, *size]}, {"y": None}, constants)
    return onnx.shape_inference.infer_shapes(made), {"x": f(2, groups * inputs, *size)}


def convolution(proto):
    conv = next(item for item in proto.graph.node if item.op_type == "Conv")
    return next(attribute.i for attribute in conv.attribute if attribute.name == "group")


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "left"),
    [(32, 4, 4, 4), (16, 2, 2, 1), (8, 16, 16, 4), (4, 4, 4, 1), (19, 8, 8, 1), (12, 8, 24, 4), (6, 32, 2, 1)],
)
def test_groups_are_joined_until_they_are_wide(groups, inputs, outputs, left):
    before, feeds = grouped(groups, inputs, outputs, pads=[1, 1, 1, 1], strides=[2, 2])
    after = run(before, [WidenGroups()])
    assert sorted(operators(after)) == sorted(["QuantizeLinear", "DequantizeLinear", *STEPS, *KERNEL])
    assert convolution(after) == left
    assert_same_outputs(before, after, feeds)
    assert run(after, [WidenGroups()]) is after


@pytest.mark.parametrize("kernel", [(5,), (1, 1), (3, 3, 3)], ids=["1", "2", "3"])
def test_of_any_number_of_dimensions(kernel):
    before, feeds = grouped(8, 4, 2, kernel)
    after = run(before, [WidenGroups()])
    assert convolution(after) == 1
    assert_same_outputs(before, after, feeds)


def test_onnxruntime_joins_them_at_load(tmp_path):
    before, feeds = grouped(8, 4, 4)
    after = run(before, [WidenGroups()])
    found = operators_run(after, tmp_path)
    assert "QLinearConv" in found and not set(STEPS) & set(found)
    np.testing.assert_array_equal(outputs(after, feeds, "ENABLE_ALL")[0], outputs(before, feeds, "ENABLE_ALL")[0])
    assert len(after.SerializeToString()) < len(before.SerializeToString()) + 700


def test_two_of_one_shape_share_their_numbers():
    one, _ = grouped(8, 4, 4, pads=[1, 1, 1, 1])
    more = [
        node("DequantizeLinear", "w2 ws wz", "wd2", axis=0),
        node("Conv", "y wd2", "c2", group=8),
        node("QuantizeLinear", "c2 t z", "cq2"),
        node("DequantizeLinear", "cq2 t z", "y2"),
    ]
    two = onnx.ModelProto()
    two.CopyFrom(one)
    two.graph.node.extend(more)
    second = two.graph.initializer.add()
    second.CopyFrom(next(tensor for tensor in one.graph.initializer if tensor.name == "w"))
    second.name = "w2"
    two.graph.output[0].name = "y2"
    two.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 4
    two.graph.output[0].type.tensor_type.shape.dim[3].dim_value = 4
    two = onnx.shape_inference.infer_shapes(two)
    after = run(two, [WidenGroups()])
    assert operators(after).count("Pad") == 4
    assert len(after.graph.initializer) - len(two.graph.initializer) == 8
    assert_same_outputs(two, after, {"x": f(2, 32, 6, 6)})


@pytest.mark.parametrize(
    "before",
    [grouped(1, 3, 4)[0], grouped(16, 1, 1)[0], grouped(4, 32, 32)[0], grouped(211, 2, 2)[0]],
    ids=["one group", "one channel each", "wide", "a prime number of groups"],
)
def test_others_stay(before):
    assert_left_alone(WidenGroups(), before)


def test_float_convolutions_stay():
    before, _ = grouped(8, 4, 4)
    codes = [item for item in before.graph.node if item.output[0] in ("q", "d")]
    for item in codes:
        before.graph.node.remove(item)
    next(item for item in before.graph.node if item.op_type == "Conv").input[0] = "x"
    assert_left_alone(WidenGroups(), before)


@pytest.mark.parametrize(("channels", "outputs", "kernel"), [(8, 2, (3, 3)), (5, 3, (1, 1)), (6, 4, (5,))])
def test_channels_are_repeated_for_each_output(channels, outputs, kernel, tmp_path):
    before, feeds = grouped(channels, 1, outputs, kernel)
    after = run(before, [RepeatChannels()])
    added = set(operators(after)) - set(operators(before))
    assert (added, convolution(after)) == ({"Range", "Div", "Gather"}, channels * outputs)
    assert_same_outputs(before, after, feeds)
    assert run(after, [RepeatChannels()]) is after
    assert_left_alone(WidenGroups(), after)
    found = operators_run(after, tmp_path)
    assert "QLinearConv" in found and not {"Range", "Div", "DequantizeLinear"} & set(found[:-1])


def test_other_readers_of_the_codes_keep_them():
    before, feeds = grouped(4, 1, 2)
    before.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("d", 1, ["n", 4, 6, 6]))
    after = run(before, [RepeatChannels()])
    assert_same_outputs(before, after, feeds)


@pytest.mark.parametrize("before", [grouped(8, 1, 1)[0], grouped(4, 2, 4)[0], grouped(1, 1, 4)[0]])
def test_others_are_not_repeated(before):
    assert_left_alone(RepeatChannels(), before)


@pytest.mark.parametrize(
    ("channels", "maps", "kernel"),
    [(3, 16, (3, 3)), (3, 24, (7, 7)), (2, 32, (5,)), (1, 16, (3, 3)), (1, 20, (2, 2, 2))],
)
def test_few_channels_become_four(channels, maps, kernel, tmp_path):
    before, feeds = grouped(1, channels, maps, kernel)
    after = run(before, [AlignInputs()])
    assert sorted(operators(after)) == sorted([*operators(before), "Pad", "Pad"])
    assert_same_outputs(before, after, feeds)
    assert run(after, [AlignInputs()]) is after
    found = operators_run(after, tmp_path)
    assert "QLinearConv" in found and found.count("Pad") == 1
    np.testing.assert_array_equal(outputs(after, feeds, "ENABLE_ALL")[0], outputs(before, feeds, "ENABLE_ALL")[0])
    assert len(after.SerializeToString()) < len(before.SerializeToString()) + 300


@pytest.mark.parametrize(
    "before",
    [
        grouped(1, 4, 16)[0],
        grouped(1, 5, 16)[0],
        grouped(1, 3, 12)[0],
        grouped(1, 3, 16, (8, 8))[0],
        grouped(8, 3, 16)[0],
    ],
    ids=["four", "more", "few outputs", "patches", "groups"],
)
def test_others_keep_their_channels(before):
    assert_left_alone(AlignInputs(), before)


def test_each_reader_of_a_weight_gets_the_channels():
    before, feeds = grouped(1, 3, 16, pads=[1, 1, 1, 1])
    again = [
        node("Conv", "d wd", "c2", strides=[2, 2]),
        node("QuantizeLinear", "c2 t z", "cq2"),
        node("DequantizeLinear", "cq2 t z", "y2"),
    ]
    before.graph.node.extend(again)
    before.graph.output.add().CopyFrom(onnx.helper.make_tensor_value_info("y2", 1, None))
    before = onnx.shape_inference.infer_shapes(before)
    after = run(before, [AlignInputs()])
    assert operators(after).count("Pad") == 4
    assert_same_outputs(before, after, feeds)
    assert run(after, [AlignInputs()]) is after
