"""Weights whose channels have widths of their own: the same numbers, exact bytes, integer kernels after loading."""

import itertools

import numpy as np
import onnx
import pytest
from small_graphs import assert_same_outputs, initializers, model, node, operators, outputs, session

from amq_onnx.runtime.session import _8_bit_readers
from amq_onnx.targets.onnxruntime import OnnxRuntimeTarget
from amq_onnx.targets.standard import StandardTarget

from .networks import CASES, LAYERS, STEM, mixed_layer, with_int32_bias
from .test_packing import KERNELS, LEVELS, case_id

# Widths that are dealt out to channels in turn.
MIXES = [(2, 4), (3, 8), (8, 5, 2), (1, 2, 3, 4, 5, 6, 7, 8)]


def dealt(case, mix):
    channels = case[1][LAYERS[case[0]][2]]
    return tuple(itertools.islice(itertools.cycle(mix), channels))


def mixes(case):
    return len(set(dealt(case, MIXES[0]))) > 1


MIXED = [case for case in CASES if mixes(case)]


@pytest.mark.parametrize("mix", MIXES, ids=str)
@pytest.mark.parametrize("case", MIXED, ids=case_id)
def test_every_level_computes_what_the_simulation_does(case, mix, tmp_path):
    simulated, packed, _, feeds = mixed_layer(*case, dealt(case, mix))
    assert "w" not in initializers(packed)
    assert_same_outputs(simulated, packed, feeds)
    packed = with_int32_bias(packed)
    (expected,) = outputs(packed, feeds)
    step = initializers(packed)[f"{STEM}a1s"]
    for level in LEVELS[1:]:
        path = tmp_path / f"{level}.onnx"
        (found,) = session(packed, level, optimized_file=path).run(None, feeds)
        assert abs(found - expected).max() <= 1.001 * step, level
        if level == "ENABLE_EXTENDED":
            kinds = set(operators(onnx.load(path)))
    assert not {"Gather", "Concat", "Cast", "Reshape", "Range"} & kinds
    operator = case[0].split(",")[0]
    assert KERNELS[operator] & kinds
    assert operator not in kinds


@pytest.mark.parametrize("case", MIXED, ids=case_id)
def test_codes_are_those_of_the_simulation(case, tmp_path):
    """The folded int8 weight is, code by code, what QuantizeLinear, Max and Min compute."""
    simulated, packed, recipe, feeds = mixed_layer(*case, dealt(case, (4, 2, 7)))
    found = []
    for proto, name in ((simulated, f"{STEM}w0hic"), (packed, recipe.result)):
        probe = onnx.ModelProto()
        probe.CopyFrom(proto)
        probe.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
        found.append(session(probe).run([name], feeds)[0])
    np.testing.assert_array_equal(*found)
    assert found[1].shape == case[1]


@pytest.mark.parametrize("opset", [13, 21])
def test_other_operator_sets(opset):
    simulated, packed, _, feeds = mixed_layer("Conv", (5, 3, 3, 3), (2, 8, 3, 2, 3), opset)
    assert_same_outputs(simulated, packed, feeds)


@pytest.mark.parametrize(
    ("shape", "axis", "mix"),
    [
        ((5, 3, 3, 3), 0, (3, 5)),
        ((7, 30), 1, (2, 4, 8)),
        ((300, 7), 0, (1, 6)),
        ((40, 2), 0, (7, 8)),
        ((9, 3), 0, (4, 2)),
    ],
    ids=str,
)
def test_file_bytes_are_the_growth_of_the_file(shape, axis, mix):
    target = OnnxRuntimeTarget(STEM)
    widths = tuple(np.random.default_rng(0).choice(mix, shape[axis]).tolist())
    recipe = target.mixed_weight("w12", shape, axis, widths)
    before = model([node("Relu", "x", "y")], {"x": [1]}, {"y": [1]})
    after = onnx.ModelProto()
    after.CopyFrom(before)
    for constant in recipe.constants:
        values = constant.values(np.zeros(shape, np.int32)).astype(constant.dtype).reshape(constant.shape)
        after.graph.initializer.append(onnx.numpy_helper.from_array(values, constant.name))
    for made in recipe.nodes:
        after.graph.node.append(onnx.helper.make_node(made.op_type, made.inputs, [made.output], **made.attributes))
    assert after.graph.ByteSize() - before.graph.ByteSize() == recipe.file_bytes()


def kinds(recipe):
    return [made.op_type for made in recipe.nodes]


def test_channels_that_are_in_order_need_no_gather():
    target = OnnxRuntimeTarget(STEM)
    sorted_widths = target.mixed_weight("w0", (8, 4), 0, (8, 8, 8, 8, 4, 4, 4, 4))
    mixed = target.mixed_weight("w0", (8, 4), 0, (8, 4, 8, 4, 8, 8, 4, 4))
    assert kinds(sorted_widths) == ["Cast", "Gather", "Reshape", "Concat", "Reshape"]
    assert kinds(mixed) == [*kinds(sorted_widths), "Gather"]
    assert mixed.file_bytes() > sorted_widths.file_bytes()


@pytest.mark.parametrize(("channels", "dtype"), [(8, np.int32), (256, np.uint8), (257, np.uint16), (4000, np.uint16)])
def test_the_order_takes_the_fewest_bytes(channels, dtype):
    recipe = OnnxRuntimeTarget(STEM).mixed_weight(
        "w0", (channels, 8), 0, (2, 4) * (channels // 2) + (2,) * (channels % 2)
    )
    (order,) = (constant for constant in recipe.constants if constant.name == f"{STEM}w0p")
    assert order.dtype == dtype


def test_one_width_for_all_channels_is_the_plain_recipe():
    target = OnnxRuntimeTarget(STEM)
    assert kinds(target.mixed_weight("w0", (4, 8), 0, (3,) * 4)) == kinds(target.weight("w0", (4, 8), 3))


def test_channels_of_8_bits_are_found_by_the_check_for_saturation():
    for widths, stored in (((2, 4, 2, 4, 2), 0), ((2, 8, 2, 8, 2), 1)):
        _, packed, recipe, _ = mixed_layer("Conv", (5, 3, 3, 3), widths)
        assert sum(_8_bit_readers(packed).values()) == stored
        assert recipe.zero_points == ("kept" if stored else "left out for Conv")


def test_the_standard_target_has_one_width_a_weight():
    with pytest.raises(ValueError, match="one width"):
        StandardTarget(STEM).mixed_weight("w0", (4, 8), 0, (2, 4, 2, 4))
