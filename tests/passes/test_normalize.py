"""Graphs, brought to one form: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import (
    IMAGE,
    assert_left_alone,
    assert_rewrites,
    assert_same_outputs,
    f,
    infos,
    initializers,
    model,
    node,
    operators,
)

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import run
from amq_onnx.passes.normalize import (
    ConstantsToInitializers,
    DropIdentities,
    MeansToPooling,
    SumsToAdds,
    require_float,
)


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
            node("Dropout", "x", "e kept"),
            node("Neg", "e", "v"),
        ]
        constants = {"ratio": np.float32(0.0), "train": np.array(True)}
        outputs = {"y": [4], "z": [4], "u": [4], "v": [4], "kept": (TensorProto.BOOL, [4])}
        assert_left_alone(DropIdentities(), model(nodes, {"x": [4]}, outputs, constants))

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

    @pytest.mark.parametrize(
        "nodes",
        [
            [node("ReduceMean", "x", "m", axes=[-1]), node("Sub", "x m", "y")],
            [node("Pow", "x two", "s"), node("ReduceMean", "s", "y", axes=[2])],
            [node("Mul", "x x", "s"), node("ReduceMean", "s", "y", axes=[2])],
        ],
        ids=["subtracted", "of squares", "of products with itself"],
    )
    def test_means_of_norms_stay(self, nodes):
        constants = {"two": np.float32(2)} if nodes[0].op_type == "Pow" else {}
        assert_left_alone(MeansToPooling(), model(nodes, {"x": [2, 3, 5]}, {"y": None}, constants, opset=13))

    def test_a_mean_over_axes_that_are_computed_stays(self):
        before = model(
            [node("ReduceMean", "x axes", "y")],
            {**IMAGE, "axes": (TensorProto.INT64, [2])},
            {"y": ["n", 1, None, None]},
        )
        assert_left_alone(MeansToPooling(), before)


def stack(*parts, axis=-1, axes=None, concat=None, kept=0, opset=18, results=("y",), behind=()):
    """Each of `parts` -> Unsqueeze -> Concat -> ReduceSum -> y"""
    constants = {"axes": np.array([axis if axes is None else axes]), "axis": np.array([axis])}
    nodes = [node("Relu", "x", "a"), node("Sigmoid", "x", "b"), node("Tanh", "x", "c")]
    nodes += [node("Unsqueeze", f"{part} axis", f"{part}{at}") for at, part in enumerate(parts)]
    nodes.append(node("Concat", " ".join(f"{part}{at}" for at, part in enumerate(parts)), "s", axis=concat or axis))
    if opset < 13:
        nodes = [node("Unsqueeze", *item.input[:1], *item.output, axes=[axis]) if item.op_type == "Unsqueeze" else item
                 for item in nodes]  # fmt: skip
        nodes.append(node("ReduceSum", "s", "y", axes=[axis], keepdims=kept))
        constants = {}
    else:
        nodes.append(node("ReduceSum", "s axes", "y", keepdims=kept))
    return model([*nodes, *behind], {"x": ["n", 3, 6, 6]}, dict.fromkeys(results), constants, opset=opset)


class TestSumsToAdds:
    @pytest.mark.parametrize(
        ("before", "terms"),
        [
            (stack("a", "b"), 2),
            (stack("a", "b", "c", axis=0), 3),
            (stack("a", "a", "b", axis=2), 3),
            (stack("a", "b", opset=12), 2),
            (stack("a", "b", results=("y", "b1")), 2),
        ],
        ids=["two", "three, first axis", "one twice", "axes as attributes", "a layer that is an output"],
    )
    def test_sums_of_stacks(self, before, terms):
        after = run(before, [SumsToAdds()])
        kinds = operators(after)
        assert kinds.count("Add") == terms - 1 and not {"Concat", "ReduceSum"} & set(kinds)
        assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)}, 1e-6)
        assert run(after, [SumsToAdds()]) is after

    def test_sums_of_several_tensors(self):
        nodes = [node("Sum", "x b x w", "t"), node("Relu", "t", "y")]
        constants = {"b": f(3, 1, 1), "w": f(1)}
        before = model(nodes, IMAGE, {"y": None, "t": None}, constants)
        assert_rewrites(SumsToAdds(), before, ["Add", "Add", "Add", "Relu"], tolerance=1e-6)

    @pytest.mark.parametrize(
        "before",
        [
            stack("a", "b", axes=1),
            stack("a", "b", axis=4, concat=-1),
            stack("a", "b", kept=1),
            stack("a", "b", results=("y", "s")),
            stack("a", "b", results=("y", "e"), behind=(node("Erf", "s", "e"),)),
            stack("a"),
            model([node("Sum", "x", "y")], IMAGE, {"y": None}),
            model([node("Concat", "x x", "s", axis=1), node("ReduceSum", "s one", "y", keepdims=0)], IMAGE,
                  {"y": None}, {"one": np.array([1])}),
            model([node("ReduceSum", "x", "y", keepdims=0)], IMAGE, {"y": None}),
        ],
        ids=["another axis", "from both ends", "an axis that stays", "an output", "read by others", "one", "Sum of one",
             "no stack", "an input"],
    )  # fmt: skip
    def test_what_stays(self, before):
        assert_left_alone(SumsToAdds(), before)


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
