"""Each rewrite: the graph before and after, onnxruntime on both, a second run, and what is left alone."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import assert_same_outputs, f, infos, initializers, model, node, operators, outputs

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import run
from amq_onnx.passes.fold_affine import FoldAffine
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.normalize import (
    ConstantsToInitializers,
    DropIdentities,
    FoldConstants,
    MeansToPooling,
    require_float,
)
from amq_onnx.passes.pack import QuantizeBiases
from amq_onnx.passes.place import PlaceOnCodes
from amq_onnx.passes.strip import strip_exporter_metadata
from amq_onnx.quantizer.affine import quantize, round_trip
from amq_onnx.quantizer.encoding import Encoding

IMAGE = {"x": ["n", 3, 6, 6]}


def assert_rewrites(rewrite, before, expected, feeds=None, tolerance=0.0):
    """The operators afterwards, the same outputs, and nothing to do for a second run; returns the model."""
    after = run(before, [rewrite])
    assert operators(after) == expected
    assert_same_outputs(before, after, feeds or {"x": f(2, 3, 6, 6)}, tolerance)
    assert run(after, [rewrite]) is after
    return after


def assert_left_alone(rewrite, before):
    assert run(before, [rewrite]) is before


def constant(name, **value):
    return helper.make_node("Constant", [], [name], **value)


class TestConstantsToInitializers:
    def test_every_kind_of_constant_becomes_an_initializer(self):
        nodes = [
            constant("w", value=numpy_helper.from_array(f(6, 4))),
            constant("b", value_floats=[1.0, -2.0, 3.0, 0.5]),
            constant("scale", value_float=0.5),
            constant("shape", value_ints=[-1, 2]),
            constant("axis", value_int=1),
            node("Gemm", "x w b", "g"),
            node("Mul", "g scale", "m"),
            node("Reshape", "m shape", "r"),
            node("CumSum", "r axis", "y"),
        ]
        before = model(nodes, {"x": ["n", 6]}, {"y": None})
        after = assert_rewrites(ConstantsToInitializers(), before, ["Gemm", "Mul", "Reshape", "CumSum"], {"x": f(3, 6)})
        kept = initializers(after)
        assert set(kept) == {"w", "b", "scale", "shape", "axis"}
        assert (kept["b"].dtype, kept["scale"].shape, kept["shape"].dtype) == (np.float32, (), np.int64)

    def test_a_constant_that_is_an_output_stays(self):
        nodes = [constant("y", value_floats=[1.0, 2.0]), node("Relu", "x", "z")]
        assert_left_alone(ConstantsToInitializers(), model(nodes, {"x": [2]}, {"y": [2], "z": [2]}))

    def test_strings_stay(self):
        nodes = [constant("s", value_strings=["a", "b"]), node("Identity", "s", "t"), node("Relu", "x", "y")]
        before = model(nodes, {"x": [2]}, {"y": [2], "t": (TensorProto.STRING, [2])})
        assert_left_alone(ConstantsToInitializers(), before)


class TestDropIdentities:
    def test_identity_chains_and_dropout_vanish(self):
        nodes = [
            node("Identity", "w", "w1"),
            node("Identity", "w1", "w2"),
            node("Conv", "x w2", "c"),
            node("Dropout", "c ratio", "d mask"),
            node("Identity", "d", "e"),
            node("Relu", "e", "p"),
            node("Neg", "e", "q"),
            node("Add", "p q", "y"),
        ]
        before = model(nodes, IMAGE, {"y": None}, {"w": f(4, 3, 3, 3), "ratio": np.float32(0.5)})
        assert_rewrites(DropIdentities(), before, ["Conv", "Relu", "Neg", "Add"])

    def test_graph_outputs_used_masks_and_training_stay(self):
        nodes = [
            node("Identity", "x", "y"),
            node("Dropout", "x", "d mask"),
            node("Where", "mask d x", "z"),
            node("Dropout", "x ratio train", "t"),
            node("Relu", "t", "u"),
        ]
        constants = {"ratio": np.float32(0.0), "train": np.array(True)}
        assert_left_alone(DropIdentities(), model(nodes, {"x": [4]}, {"y": [4], "z": [4], "u": [4]}, constants))

    def test_readers_in_a_subgraph_still_find_their_tensor(self):
        branches = {
            f"{name}_branch": helper.make_graph(
                [helper.make_node(op, ["i"], [f"{name}_out"])], name, [], infos({f"{name}_out": None})
            )
            for name, op in (("then", "Neg"), ("else", "Abs"))
        }
        nodes = [
            node("Identity", "x", "i"),
            node("ReduceSum", "x", "s", keepdims=0),
            node("Greater", "s zero", "c"),
            helper.make_node("If", ["c"], ["y"], **branches),
        ]
        before = model(nodes, {"x": [4]}, {"y": None}, {"zero": np.float32(0)})
        after = run(before, [DropIdentities()])
        for sign in (1, -1):
            assert_same_outputs(before, after, {"x": np.full(4, sign, np.float32)})


class TestMeansToPooling:
    @pytest.mark.parametrize("opset", [13, 18])
    @pytest.mark.parametrize("axes", [[2, 3], [-1, -2]])
    @pytest.mark.parametrize("keep", [0, 1])
    def test_a_mean_over_all_pixels_becomes_pooling(self, opset, axes, keep):
        if opset < 18:
            nodes, constants = [node("ReduceMean", "x", "y", axes=axes, keepdims=keep)], {}
        else:
            nodes, constants = [node("ReduceMean", "x axes", "y", keepdims=keep)], {"axes": np.array(axes)}
        before = model(nodes, IMAGE, {"y": None}, constants, opset)
        expected = ["GlobalAveragePool"] if keep else ["GlobalAveragePool", "Flatten"]
        assert_rewrites(MeansToPooling(), before, expected, tolerance=1e-6)

    def test_a_sequence_of_one_dimension(self):
        before = model([node("ReduceMean", "x", "y", axes=[2], keepdims=0)], {"x": [2, 3, 5]}, {"y": None}, opset=13)
        expected = ["GlobalAveragePool", "Flatten"]
        assert_rewrites(MeansToPooling(), before, expected, {"x": f(2, 3, 5)}, tolerance=1e-6)

    @pytest.mark.parametrize(
        ("shape", "axes"),
        [(["n", 3, 6, 6], [1]), (["n", 3, 6, 6], [2]), (["n", 3, 6, 6], [1, 2, 3]), (["n", 6], [1])],
    )
    def test_other_means_stay(self, shape, axes):
        before = model([node("ReduceMean", "x", "y", axes=axes)], {"x": shape}, {"y": None}, opset=13)
        assert_left_alone(MeansToPooling(), before)

    def test_a_mean_of_a_tensor_whose_rank_is_not_known_stays(self):
        before = model(
            [node("Relu", "x", "a"), node("ReduceMean", "a", "y", axes=[2, 3])], IMAGE, {"y": None}, opset=13
        )
        assert_left_alone(MeansToPooling(), before)

    def test_a_mean_over_axes_that_are_computed_stays(self):
        before = model(
            [node("ReduceMean", "x axes", "y")],
            {**IMAGE, "axes": (TensorProto.INT64, [2])},
            {"y": ["n", 1, None, None]},
        )
        assert_left_alone(MeansToPooling(), before)


class TestFoldConstants:
    def test_a_transposed_and_scaled_weight_is_computed(self):
        nodes = [
            node("Transpose", "w", "t", perm=[1, 0]),
            node("Mul", "t s", "v"),
            node("MatMul", "x v", "y"),
        ]
        weights = {"w": f(4, 6), "s": np.float32(0.3)}
        before = model(nodes, {"x": ["n", 6]}, {"y": None}, weights)
        after = assert_rewrites(FoldConstants(), before, ["MatMul"], {"x": f(2, 6)})
        np.testing.assert_array_equal(initializers(after)["v"], weights["w"].T * weights["s"])

    def test_what_depends_on_an_input_stays(self):
        nodes = [node("Mul", "x s", "v"), node("Neg", "v", "y")]
        assert_left_alone(FoldConstants(), model(nodes, {"x": [3]}, {"y": [3]}, {"s": np.float32(2)}))

    def test_the_shape_of_a_free_dimension_is_not_frozen(self):
        nodes = [node("Shape", "x", "s"), node("ConstantOfShape", "s", "z"), node("Add", "x z", "y")]
        before = model(nodes, {"x": ["n", 3]}, {"y": None})
        after = run(before, [FoldConstants()])
        for count in (1, 4):
            assert_same_outputs(before, after, {"x": f(count, 3)})

    def test_a_result_that_would_bloat_the_file_stays_computed(self):
        nodes = [node("Expand", "one shape", "big"), node("Add", "x big", "y")]
        constants = {"one": np.float32(1), "shape": np.array([17_000_000])}  # 68 MB
        after = run(model(nodes, {"x": [1]}, {"y": None}, constants), [FoldConstants()])
        assert operators(after) == ["Expand", "Add"]
        assert after.ByteSize() < 1000


class TestFoldAffine:
    def norm(self, channels):
        return {"scale": f(channels), "shift": f(channels), "mean": f(channels), "var": np.abs(f(channels)) + 0.1}

    def conv_norm(self, bias=True, weight=None, **attributes):
        weight = f(4, 3, 3, 3) if weight is None else weight
        constants = {"w": weight, **self.norm(weight.shape[0])} | ({"b": f(weight.shape[0])} if bias else {})
        nodes = [
            node("Conv", "x w b" if bias else "x w", "c", **attributes),
            node("BatchNormalization", "c scale shift mean var", "n", epsilon=1e-3),
            node("Relu", "n", "y"),
        ]
        return nodes, constants

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("groups", [1, 3])
    def test_it_goes_into_the_convolution(self, bias, groups):
        nodes, constants = self.conv_norm(bias, f(6, 3 // groups, 3, 3), group=groups)
        after = assert_rewrites(
            FoldAffine(), model(nodes, IMAGE, {"y": None}, constants), ["Conv", "Relu"], tolerance=1e-6
        )
        assert initializers(after)["w"].dtype == np.float32
        assert len(after.graph.node[0].input) == 3

    def test_a_convolution_with_other_readers_stays(self):
        nodes, constants = self.conv_norm()
        nodes.append(node("Neg", "c", "z"))
        assert_left_alone(FoldAffine(), model(nodes, IMAGE, {"y": None, "z": None}, constants))

    def test_a_convolution_that_is_an_output_stays(self):
        nodes, constants = self.conv_norm()
        assert_left_alone(FoldAffine(), model(nodes, IMAGE, {"y": None, "c": None}, constants))

    @pytest.mark.parametrize("shared", ["x w b2", "x w2 b"])
    def test_a_weight_or_bias_with_other_readers_stays(self, shared):
        nodes, constants = self.conv_norm()
        constants |= {"w2": f(4, 3, 3, 3), "b2": f(4)}
        nodes.append(node("Conv", shared, "z"))
        assert_left_alone(FoldAffine(), model(nodes, IMAGE, {"y": None, "z": None}, constants))

    def test_a_weight_that_is_computed_stays(self):
        nodes, constants = self.conv_norm()
        del constants["w"]
        nodes.insert(0, node("Slice", "k zero two", "w"))
        constants |= {"zero": np.array([0]), "two": np.array([4])}
        before = model(nodes, {**IMAGE, "k": [5, 3, 3, 3]}, {"y": None}, constants)
        assert_left_alone(FoldAffine(), before)

    @pytest.mark.parametrize(
        "behind",
        [
            [node("Mul", "c one", "d")],
            [node("Div", "c channels", "d")],
            [node("Sub", "channels c", "d")],
            [node("Mul", "k c", "e"), node("Sub", "e channels", "g"), node("Add", "g one", "d")],
        ],
        ids=["one number", "one a channel", "from the left", "several"],
    )
    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
    def test_arithmetic_with_constants_goes_in_too(self, operator, groups, behind):
        shape = (4, 6 // groups, 3, 3) if operator == "Conv" else (6, 4 // groups, 3, 3)
        nodes = [node(operator, "x w", "c", group=groups), *behind, node("Relu", "d", "y")]
        constants = {"w": f(*shape), "one": f(1), "k": f(4, 1, 1), "channels": f(1, 4, 1, 1) + 3}
        used = {name for item in nodes for name in item.input}
        constants = {name: value for name, value in constants.items() if name in used}
        before = model(nodes, {"x": ["n", 6, 5, 5]}, {"y": None}, constants)
        assert_rewrites(FoldAffine(), before, [operator, "Relu"], {"x": f(2, 6, 5, 5)}, tolerance=1e-5)

    @pytest.mark.parametrize(
        ("behind", "constant"),
        [
            (node("Add", "c k", "y"), f(1, 1, 4, 4)),
            (node("Add", "c k", "y"), f(2, 1, 4, 1, 1)),
            (node("Div", "k c", "y"), f(1)),
            (node("Div", "c k", "y"), np.zeros(1, np.float32)),
            (node("Mul", "c c", "y"), None),
        ],
        ids=["one a pixel", "of higher rank", "divided by it", "by zero", "by itself"],
    )
    def test_other_arithmetic_stays(self, behind, constant):
        constants = {"w": f(4, 3, 3, 3)} | ({} if constant is None else {"k": constant})
        assert_left_alone(FoldAffine(), model([node("Conv", "x w", "c"), behind], IMAGE, {"y": None}, constants))

    def test_norms_with_one_set_of_parameters_are_folded_each(self):
        nodes = [
            node("Conv", "x w1", "c1"),
            node("BatchNormalization", "c1 scale shift mean var", "n1"),
            node("Conv", "n1 w2", "c2"),
            node("BatchNormalization", "c2 scale shift mean var", "y"),
        ]
        constants = {"w1": f(4, 3, 3, 3), "w2": f(4, 4, 3, 3), **self.norm(4)}
        assert_rewrites(FoldAffine(), model(nodes, IMAGE, {"y": None}, constants), ["Conv", "Conv"], tolerance=1e-6)


def encoded(bits=8, signed=False, scale=0.05, zero=0, axis=None):
    return Encoding(bits, signed, np.asarray(scale, np.float32), zero, axis)


class TestInsertQDQ:
    def small(self):
        nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Neg", "r", "y")]
        return model(nodes, IMAGE, {"y": None}, {"w": f(4, 3, 3, 3)})

    def test_each_site_is_rounded_as_the_quantizer_rounds(self):
        before = self.small()
        weight = encoded(3, True, np.array([0.3, 0.2, 0.5, 0.4]), axis=0)
        data = encoded(5, scale=0.2, zero=15)
        after = run(before, [InsertQDQ({"w": weight, "x": data})])
        assert sorted(operators(after)) == sorted(
            ["QuantizeLinear", "Clip", "DequantizeLinear"] * 2 + ["Conv", "Relu", "Neg"]
        )
        rounded = onnx.ModelProto()
        rounded.CopyFrom(before)
        values = round_trip(initializers(before)["w"], weight)
        rounded.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
        image = f(2, 3, 6, 6)
        (ours,) = outputs(after, {"x": image})
        (theirs,) = outputs(rounded, {"x": round_trip(image, data)})
        np.testing.assert_array_equal(ours, theirs)
        assert run(after, [InsertQDQ({"w": weight, "x": data})]) is after

    def test_channels_of_several_widths_are_bounded_by_max_and_min(self):
        before = self.small()
        weight = Encoding(8, True, np.array([0.3, 0.2, 0.5, 0.01], np.float32), axis=0, widths=(3, 2, 5, 8))
        after = run(before, [InsertQDQ({"w": weight})])
        assert operators(after) == ["QuantizeLinear", "Max", "Min", "DequantizeLinear", "Conv", "Relu", "Neg"]
        made = {item.op_type: item for item in after.graph.node}
        for operator, ends in (("Max", [-4, -2, -16, -128]), ("Min", [3, 1, 15, 127])):
            bound = initializers(after)[made[operator].input[1]]
            np.testing.assert_array_equal(bound, np.array(ends, np.int8).reshape(4, 1, 1, 1))
        rounded = onnx.ModelProto()
        rounded.CopyFrom(before)
        values = round_trip(initializers(before)["w"], weight)
        rounded.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
        image = f(2, 3, 6, 6)
        np.testing.assert_array_equal(outputs(after, {"x": image})[0], outputs(rounded, {"x": image})[0])
        assert run(after, [InsertQDQ({"w": weight})]) is after

    def test_eight_bits_need_no_clip_and_all_readers_read_the_same(self):
        nodes = [node("Relu", "x", "r"), node("Conv", "r w", "a"), node("Conv", "r v", "b"), node("Add", "a b", "y")]
        before = model(nodes, IMAGE, {"y": None}, {"w": f(4, 3, 3, 3), "v": f(4, 3, 3, 3)})
        after = run(before, [InsertQDQ({"r": encoded()})])
        assert operators(after).count("QuantizeLinear") == operators(after).count("DequantizeLinear") == 1
        assert "Clip" not in operators(after)
        read = {name for item in after.graph.node if item.op_type == "Conv" for name in item.input[:1]}
        assert len(read) == 1 and read != {"r"}

    def test_an_output_keeps_its_float_value(self):
        nodes = [node("Relu", "x", "r"), node("Conv", "r w", "y")]
        before = model(nodes, IMAGE, {"y": None, "r": None}, {"w": f(4, 3, 3, 3)})
        image = f(2, 3, 6, 6)
        after = run(before, [InsertQDQ({"r": encoded(scale=0.5)})])
        np.testing.assert_array_equal(outputs(after, {"x": image})[1], np.maximum(image, 0))
        assert np.abs(outputs(after, {"x": image})[0] - outputs(before, {"x": image})[0]).max() > 0.01

    def test_a_tensor_read_twice_by_one_node(self):
        before = model([node("Relu", "x", "r"), node("MatMul", "r r", "y")], {"x": [4, 4]}, {"y": None})
        values = f(4, 4)
        after = run(before, [InsertQDQ({"r": encoded()})])
        rounded = round_trip(np.maximum(values, 0), encoded())
        np.testing.assert_allclose(outputs(after, {"x": values})[0], rounded @ rounded, rtol=1e-6)

    def test_an_unknown_tensor_is_named(self):
        with pytest.raises(ModelError, match="'nowhere'"):
            run(self.small(), [InsertQDQ({"nowhere": encoded()})])


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

    def test_a_pad_with_another_number_stays(self):
        constants = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "fill": np.float32(-np.inf)}
        assert_left_alone(PlaceOnCodes(), self.quantized([node("Pad", "x pads fill", "c")], encoded(), constants))

    def test_a_carrier_that_is_an_output_stays(self):
        before = model([node("Flatten", "x", "y")], IMAGE, {"y": None})
        assert_left_alone(PlaceOnCodes(), run(before, [InsertQDQ({"x": encoded()})]))

    def test_scales_per_channel_stay(self):
        encoding = encoded(8, True, np.array([0.1, 0.2, 0.3]), axis=1)
        assert_left_alone(PlaceOnCodes(), self.quantized([node("Flatten", "x", "c")], encoding))


class TestQuantizeBiases:
    def conv(self, bias, weight_scale=(0.01, 0.02, 0.03, 0.04), **attributes):
        nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Sigmoid", "r", "y")]
        before = model(nodes, IMAGE, {"y": None}, {"w": f(4, 3, 3, 3), "b": bias})
        encodings = {"x": encoded(zero=128), "w": encoded(8, True, np.array(weight_scale), axis=0), "r": encoded()}
        return run(before, [InsertQDQ(encodings)])

    def test_the_bias_becomes_int32_in_units_of_both_scales(self):
        bias = f(4)
        before = self.conv(bias)
        after = run(before, [QuantizeBiases()])
        stored = [value for value in initializers(after).values() if value.dtype == np.int32]
        unit = np.float32(0.05) * np.array([0.01, 0.02, 0.03, 0.04], np.float32)
        np.testing.assert_array_equal(stored, [np.rint(bias.astype(np.float64) / unit)])
        assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)}, tolerance=1e-3)
        assert run(after, [QuantizeBiases()]) is after

    def test_a_bias_too_large_for_int32_stays_float(self):
        assert_left_alone(QuantizeBiases(), self.conv(np.full(4, 1e9, np.float32)))

    def test_without_a_quantized_weight_it_stays_float(self):
        before = model([node("Conv", "x w b", "y")], IMAGE, {"y": None}, {"w": f(4, 3, 3, 3), "b": f(4)})
        assert_left_alone(QuantizeBiases(), run(before, [InsertQDQ({"x": encoded()})]))
        assert_left_alone(QuantizeBiases(), before)

    @pytest.mark.parametrize("attributes", [{"alpha": 0.5}, {"beta": 2.0}])
    def test_a_scaled_gemm_stays_float(self, attributes):
        before = model(
            [node("Gemm", "x w b", "y", **attributes)], {"x": [2, 3]}, {"y": None}, {"w": f(3, 4), "b": f(4)}
        )
        encodings = {"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=1)}
        assert_left_alone(QuantizeBiases(), run(before, [InsertQDQ(encodings)]))

    @pytest.mark.parametrize("shape", [(1,), (2, 4), ()])
    def test_a_bias_that_is_broadcast_stays_float(self, shape):
        before = model([node("Gemm", "x w b", "y")], {"x": [2, 3]}, {"y": None}, {"w": f(3, 4), "b": f(*shape)})
        encodings = {"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=1)}
        assert_left_alone(QuantizeBiases(), run(before, [InsertQDQ(encodings)]))

    def test_biases_of_two_runs_do_not_share_names(self):
        nodes = [node("Conv", "x w b", "c"), node("Relu", "c", "r"), node("Conv", "r v d", "y")]
        constants = {"w": f(4, 3, 3, 3), "b": f(4), "v": f(2, 4, 1, 1), "d": f(2)}
        before = model(nodes, IMAGE, {"y": None}, constants)
        first = {"x": encoded(zero=128), "w": encoded(8, True, np.full(4, 0.02), axis=0)}
        second = {"r": encoded(scale=0.1), "v": encoded(8, True, np.full(2, 0.03), axis=0)}
        half = run(before, [InsertQDQ(first), QuantizeBiases()])
        whole = run(half, [InsertQDQ(second), QuantizeBiases()])
        direct = run(before, [InsertQDQ({**first, **second}), QuantizeBiases()])
        assert_same_outputs(whole, direct, {"x": f(2, 3, 6, 6)})


class TestStrip:
    def test_notes_vanish_and_the_rest_stays(self):
        nodes = [node("Relu", "x", "a"), node("Abs", "a", "y")]
        before = onnx.shape_inference.infer_shapes(model(nodes, {"x": [2]}, {"y": [2]}))
        before.ir_version, before.doc_string = 10, "the model"
        before.metadata_props.add(key="classes", value="cat")
        before.graph.metadata_props.add(key="mine", value="kept")
        before.graph.node[0].metadata_props.add(key="pkg.torch.stack_trace", value="/home/me/train.py")
        before.graph.node[0].doc_string = "/home/me/train.py"
        assert before.graph.value_info
        size = before.ByteSize()
        after = strip_exporter_metadata(before)
        assert before.ByteSize() == size
        assert b"/home/me" not in after.SerializeToString()
        assert not after.graph.value_info
        assert [entry.key for entry in after.metadata_props] == ["classes"]
        assert [entry.key for entry in after.graph.metadata_props] == ["mine"]
        assert after.doc_string == "the model"
        assert_same_outputs(before, after, {"x": f(2)})
        assert strip_exporter_metadata(after) == after

    def test_attributes_that_are_not_the_default_stay(self):
        nodes = [
            node("Conv", "x w", "a", strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1),
            node("Conv", "x w", "b", strides=[2, 2], pads=[1, 1, 0, 0], dilations=[1, 2]),
            node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
            node("Softmax", "p", "s", axis=1),
            node("LeakyRelu", "b", "l", alpha=0.01),
            node("Clip", "l", "k"),
        ]
        before = model(nodes, IMAGE, {"s": None, "k": None}, {"w": f(4, 3, 2, 2)})
        assert_same_outputs(before, strip_exporter_metadata(before), {"x": f(2, 3, 7, 7)[:, :, :6, :6]})

    def test_nodes_of_subgraphs_are_stripped_too(self):
        branch = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "b", [], infos({"o": None}))
        branch.node[0].doc_string = "secret"
        other = helper.make_graph([helper.make_node("Abs", ["x"], ["o2"])], "c", [], infos({"o2": None}))
        nodes = [helper.make_node("If", ["cond"], ["y"], then_branch=branch, else_branch=other)]
        before = model(nodes, {"x": [2], "cond": (TensorProto.BOOL, [])}, {"y": None})
        after = strip_exporter_metadata(before)
        assert b"secret" not in after.SerializeToString()
        assert_same_outputs(before, after, {"x": f(2), "cond": np.array(True)})


class TestRequireFloat:
    @pytest.mark.parametrize("quantized", ["QuantizeLinear", "MatMulInteger", "QLinearConv"])
    def test_quantized_models_are_refused_with_the_node(self, quantized):
        proto = onnx.ModelProto()
        proto.graph.node.append(helper.make_node("Relu", ["a"], ["b"]))
        proto.graph.node.append(helper.make_node(quantized, ["b"], ["c"], name="culprit"))
        with pytest.raises(ModelError, match=f"'culprit' is a {quantized}"):
            require_float(proto)

    def test_float_models_pass(self):
        require_float(model([node("Relu", "x", "y")], {"x": [1]}, {"y": [1]}))


def test_quantize_codes_match_what_the_inserted_nodes_compute():
    """The codes of InsertQDQ's nodes at 2 bits, asked for as an output of the graph."""
    before = model([node("Relu", "x", "y")], {"x": [50]}, {"y": [50]})
    encoding = encoded(2, scale=0.7, zero=1)
    graph = gs.import_onnx(run(before, [InsertQDQ({"x": encoding})]))
    codes = next(item for item in graph.nodes if item.op == "Clip").outputs[0]
    graph.outputs = [codes]
    values = f(50) * 2
    (found,) = outputs(gs.export_onnx(graph.cleanup()), {"x": values})
    np.testing.assert_array_equal(found, quantize(values, encoding))
