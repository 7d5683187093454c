"""Operators that carry codes: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import pytest
from onnx import helper
from small_graphs import (
    IMAGE,
    assert_left_alone,
    assert_rewrites,
    assert_same_outputs,
    encoded,
    f,
    infos,
    model,
    node,
    operators,
)

from amq_onnx.passes.base import run
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.place import PlaceOnCodes


def ints(*values):
    return np.array(values, np.int64)


# By case: operator, inputs, attributes, constants.
CARRIERS = {
    "Slice": ("Slice", "x start stop axes", {}, {"start": ints(1), "stop": ints(5), "axes": ints(2)}),
    "Transpose": ("Transpose", "x", {"perm": [0, 2, 3, 1]}, {}),
    "Reshape": ("Reshape", "x shape", {}, {"shape": ints(0, -1)}),
    "Flatten": ("Flatten", "x", {"axis": 1}, {}),
    "Unsqueeze": ("Unsqueeze", "x axes", {}, {"axes": ints(0)}),
    "MaxPool": ("MaxPool", "x", {"kernel_shape": [2, 2], "pads": [1, 1, 0, 0]}, {}),
    "Resize": ("Resize", "x - twice", {}, {"twice": np.float32([1, 1, 2, 2])}),
    "Pad": ("Pad", "x pads", {}, {"pads": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
    "Pad, 0": ("Pad", "x pads fill", {}, {"pads": ints(0, 0, 1, 2, 0, 1, 0, 1), "fill": np.float32(0)}),
    "Pad, edge": ("Pad", "x pads", {"mode": "edge"}, {"pads": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
}


class TestPlaceOnCodes:
    def quantized(self, carriers, encoding, constants=None, inputs=None):
        """x -> Q -> DQ -> carriers -> Neg -> y"""
        before = model([*carriers, node("Neg", "c", "y")], inputs or IMAGE, {"y": None}, constants or {})
        return run(before, [InsertQDQ({"x": encoding})])

    @pytest.mark.parametrize("bits", [8, 3])
    @pytest.mark.parametrize("kind", CARRIERS)
    def test_carriers_work_on_codes_bit_for_bit(self, kind, bits):
        name, inputs, attributes, constants = CARRIERS[kind]
        zero = 3 if bits == 3 else 77
        before = self.quantized([node(name, inputs, "c", **attributes)], encoded(bits, zero=zero), constants)
        order = ["QuantizeLinear", *(["Clip"] if bits < 8 else []), name, "DequantizeLinear", "Neg"]
        assert_rewrites(PlaceOnCodes(), before, order)

    def test_a_split_carries_codes_to_all_its_outputs(self):
        nodes = [node("Split", "x", "a b", axis=2, num_outputs=2), node("Sub", "a b", "c")]
        before = self.quantized(nodes, encoded(zero=77))
        order = ["QuantizeLinear", "Split", "DequantizeLinear", "DequantizeLinear", "Sub", "Neg"]
        assert_rewrites(PlaceOnCodes(), before, order)

    @pytest.mark.parametrize(
        "attributes",
        [{"mode": "linear"}, {"mode": "cubic"}, {"coordinate_transformation_mode": "tf_crop_and_resize"}],
        ids=["linear", "cubic", "cropped"],
    )
    def test_a_resize_that_makes_other_numbers_stays(self, attributes):
        constants = {"roi": np.float32([0, 0, 0, 0, 1, 1, 1.5, 1]), "twice": np.float32([1, 1, 2, 2])}
        before = self.quantized([node("Resize", "x roi twice", "c", **attributes)], encoded(), constants)
        assert_left_alone(PlaceOnCodes(), before)

    def test_a_resize_that_names_its_axes_stays(self):
        constants = {"twice": np.float32([2, 2])}
        before = self.quantized([node("Resize", "x - twice", "c", axes=[2, 3])], encoded(), constants)
        assert_left_alone(PlaceOnCodes(), before)

    def test_several_carriers_and_branches(self):
        carriers = [
            node("MaxPool", "x", "m", kernel_shape=[2, 2]),
            node("Transpose", "m", "t", perm=[0, 2, 3, 1]),
            node("Relu", "m", "r"),
            node("Flatten", "r", "fr"),
            node("Flatten", "t", "ft"),
            node("Add", "fr ft", "c"),
        ]
        before = self.quantized(carriers, encoded(zero=100))
        after = run(before, [PlaceOnCodes()])
        assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)})
        assert run(after, [PlaceOnCodes()]) is after
        readers = {item.op_type for item in after.graph.node for name in item.input if name.endswith("d")}
        assert "MaxPool" not in readers

    def test_a_shape_is_that_of_the_codes(self):
        nodes = [node("Shape", "x", "s"), node("Cast", "s", "c", to=1)]
        order = ["QuantizeLinear", "Shape", "Cast", "Neg"]
        assert_rewrites(PlaceOnCodes(), self.quantized(nodes, encoded()), order)

    def test_a_pad_with_another_number_stays(self):
        constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "fill": np.float32(-np.inf)}
        assert_left_alone(PlaceOnCodes(), self.quantized([node("Pad", "x pads fill", "c")], encoded(), constants))

    def test_a_carrier_that_is_an_output_stays(self):
        before = model([node("Flatten", "x", "y")], IMAGE, {"y": None})
        assert_left_alone(PlaceOnCodes(), run(before, [InsertQDQ({"x": encoded()})]))

    def test_scales_per_channel_stay(self):
        encoding = encoded(8, True, np.array([0.1, 0.2, 0.3]), axis=1)
        assert_left_alone(PlaceOnCodes(), self.quantized([node("Flatten", "x", "c")], encoding))

    def test_operators_of_a_subgraph_read_the_float_tensor(self):
        carrier = node("Transpose", "x", "t", perm=[0, 1, 3, 2])
        branches = [
            helper.make_graph([item], kind, [], infos({name: None}))
            for kind, name, item in (("then", "t", carrier), ("else", "e", node("Neg", "x", "e")))
        ]
        nodes = [
            node("ReduceMax", "x", "largest", keepdims=0),
            node("Greater", "largest nothing", "positive"),
            helper.make_node("If", ["positive"], ["c"], then_branch=branches[0], else_branch=branches[1]),
        ]
        before = self.quantized(nodes, encoded(zero=77), {"nothing": np.float32(0)})
        after = run(before, [PlaceOnCodes()])
        assert operators(after) == operators(before)
        assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)})
