"""Models of 16-bit floats: computed in float32, stored in 16 bits."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import f, infos, initializers, model, node, operators, session

from amq_onnx.passes.base import run
from amq_onnx.passes.halve_constants import HalveConstants
from amq_onnx.passes.widen_half import WidenHalf


def half(nodes, inputs, outputs, constants, kind=TensorProto.FLOAT16, opset=18):
    """A graph whose float tensors are all of 16 bits; shapes inferred, as preparation does before the pass."""
    tensors = [
        numpy_helper.from_array(values, name)
        if values.dtype.kind != "f"
        else helper.make_tensor(name, kind, values.shape, values.ravel().tolist())
        for name, values in constants.items()
    ]
    graph = helper.make_graph(list(nodes), "small", infos(inputs), infos(outputs), tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True)


def types(proto):
    """The element types of all that nodes make, in subgraphs too."""
    found = set()

    def collect(graph):
        found.update(value.type.tensor_type.elem_type for value in graph.value_info)
        found.update(tensor.data_type for tensor in graph.initializer)
        for item in graph.node:
            for attribute in item.attribute:
                if attribute.type == onnx.AttributeProto.GRAPH:
                    found.update(value.type.tensor_type.elem_type for value in attribute.g.output)
                    collect(attribute.g)

    collect(onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph)
    return found


def network(kind=TensorProto.FLOAT16):
    nodes = [node("MatMul", "x w", "p"), node("Relu", "p", "r"), node("Add", "r b", "y")]
    constants = {"w": f(8, 5), "b": f(5)}
    return half(nodes, {"x": (kind, ["n", 8])}, {"y": (kind, ["n", 5])}, constants, kind)


class TestWidenHalf:
    @pytest.mark.parametrize("kind", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
    def test_everything_between_inputs_and_outputs_has_32_bits(self, kind):
        before = network(kind)
        after = run(before, [WidenHalf()])
        assert operators(after) == ["Cast", "MatMul", "Relu", "Add", "Cast"]
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert types(after) == {TensorProto.FLOAT}
        # Constants have the numbers that they had in 16 bits, not those before.
        np.testing.assert_array_equal(initializers(after)["w"], initializers(before)["w"].astype(np.float32))

    def test_it_computes_what_onnxruntime_does_but_for_the_last_bits(self):
        before = network()
        after = run(before, [WidenHalf()])
        feeds = {"x": f(6, 8).astype(np.float16)}
        (found,), (known,) = session(after).run(None, feeds), session(before).run(None, feeds)
        assert found.dtype == np.float16
        np.testing.assert_allclose(found.astype(np.float32), known.astype(np.float32), rtol=2e-3, atol=2e-3)

    def test_a_second_run_and_a_float_model_change_nothing(self):
        once = run(network(), [WidenHalf()])
        float_model = model([node("Relu", "x", "y")], {"x": ["n", 8]}, {"y": None})
        assert run(float_model, [WidenHalf()]) is float_model
        assert run(once, [WidenHalf()]) is once

    def test_casts_inside_are_gone(self):
        """As tools write that keep some operators in float32."""
        nodes = [
            node("Cast", "x", "h", to=TensorProto.FLOAT16),
            node("MatMul", "h w", "p"),
            node("Cast", "p", "wide", to=TensorProto.FLOAT),
            node("Softmax", "wide", "s"),
            node("Cast", "s", "narrow", to=TensorProto.FLOAT16),
            node("MatMul", "narrow v", "q"),
            node("Cast", "q", "y", to=TensorProto.FLOAT),
        ]
        before = half(nodes, {"x": ["n", 8]}, {"y": ["n", 4]}, {"w": f(8, 6), "v": f(6, 4)})
        after = run(before, [WidenHalf()])
        assert "Cast" not in operators(after)
        feeds = {"x": f(6, 8)}
        found, known = session(after).run(None, feeds)[0], session(before).run(None, feeds)[0]
        np.testing.assert_allclose(found, known, rtol=2e-3, atol=2e-3)

    def test_types_that_attributes_name(self):
        nodes = [
            node("Shape", "x", "shape"),
            node("ConstantOfShape", "shape", "ones", value=helper.make_tensor("one", TensorProto.FLOAT16, [1], [1.5])),
            node("EyeLike", "x", "eye", dtype=TensorProto.FLOAT16),
            node("Add", "ones eye", "sum"),
            node("CastLike", "k x", "cast"),
            node("Mul", "sum cast", "y"),
        ]
        constants = {"k": np.arange(4, dtype=np.int64)}
        kind = TensorProto.FLOAT16
        before = half(nodes, {"x": (kind, [3, 4])}, {"y": (kind, [3, 4])}, constants)
        after = run(before, [WidenHalf()])
        assert TensorProto.FLOAT16 not in types(after)
        feeds = {"x": f(3, 4).astype(np.float16)}
        np.testing.assert_array_equal(session(after).run(None, feeds)[0], session(before).run(None, feeds)[0])

    def test_subgraphs_see_the_wide_input(self):
        kind = TensorProto.FLOAT16

        def branch(op_type, name):
            made = [helper.make_tensor_value_info(name, kind, ["n", 8])]
            return helper.make_graph([node(op_type, "x c", name)], name, [], made,
                                     [helper.make_tensor("c", kind, [8], [0.5] * 8)])  # fmt: skip

        choice = helper.make_node(
            "If", ["yes"], ["y"], then_branch=branch("Add", "more"), else_branch=branch("Sub", "less")
        )
        inputs = {"x": (kind, ["n", 8]), "yes": (TensorProto.BOOL, [])}
        before = half([choice], inputs, {"y": (kind, ["n", 8])}, {})
        after = run(before, [WidenHalf()])
        assert TensorProto.FLOAT16 not in types(after)
        for yes in (True, False):
            feeds = {"x": f(2, 8).astype(np.float16), "yes": np.array(yes)}
            np.testing.assert_array_equal(session(after).run(None, feeds)[0], session(before).run(None, feeds)[0])

    def test_names_that_are_taken(self):
        nodes = [node("Relu", "x", "x_1"), node("Add", "x_1 x", "y"), node("Identity", "y", "y_1")]
        kind = TensorProto.FLOAT16
        before = half(nodes, {"x": (kind, [4])}, {"y": (kind, [4]), "y_1": (kind, [4])}, {})
        after = run(before, [WidenHalf()])
        feeds = {"x": f(4).astype(np.float16)}
        np.testing.assert_array_equal(session(after).run(None, feeds), session(before).run(None, feeds))


class TestHalveConstants:
    def test_what_16_bits_hold_is_stored_in_them(self):
        exact = f(20, 20).astype(np.float16).astype(np.float32)
        exact[0, 0] = -np.inf
        nodes = [node("Add", "x exact", "a"), node("Add", "a other", "b"), node("Add", "b few", "y")]
        constants = {"exact": exact, "other": f(20, 20), "few": np.ones(20, np.float32)}
        before = model(nodes, {"x": [20, 20]}, {"y": None}, constants)
        after = run(before, [HalveConstants("q")])
        assert operators(after) == ["Cast", "Add", "Add", "Add"]
        stored = initializers(after)
        assert sorted(stored) == ["few", "other", "q_half0"] and stored["q_half0"].dtype == np.float16
        feeds = {"x": f(20, 20)}
        np.testing.assert_array_equal(session(after).run(None, feeds)[0], session(before).run(None, feeds)[0])
        assert run(after, [HalveConstants("q")]) is after

    def test_runtimes_fold_the_cast_when_they_load(self, tmp_path):
        nodes = [node("MatMul", "x w", "y")]
        before = model(nodes, {"x": ["n", 32]}, {"y": None}, {"w": np.eye(32, dtype=np.float32)})
        after = run(before, [HalveConstants("q")])
        session(after, "ENABLE_BASIC", optimized_file=tmp_path / "loaded.onnx")
        assert operators(onnx.load(tmp_path / "loaded.onnx")) == ["MatMul"]
