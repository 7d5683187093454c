"""The executor itself: names, leaves, derivatives, memory, shapes, errors."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from amq_onnx.errors import DataError, ModelError, UnsupportedOperatorError
from amq_onnx.executor import registry
from amq_onnx.executor.interpreter import Executor, UnsupportedOperator, unsupported_operators

from .graphs import f, model, onnxruntime_outputs, perceptron

node = helper.make_node
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def chain(length):
    """x doubled `length` times: t1, t2, ..."""
    nodes = [node("Add", [f"t{i}" if i else "x"] * 2, [f"t{i + 1}"]) for i in range(length)]
    return model(nodes, {"x": (FLOAT, ["n"])}, {f"t{length}": FLOAT})


# -- names


def test_inputs_outputs_and_initializers():
    proto = perceptron()
    executor = Executor(proto)
    assert executor.inputs == ("x",) and executor.outputs == ("y",)
    assert set(executor.initializers) == {"w1", "b1", "w2"}
    np.testing.assert_array_equal(executor.initializers["w1"], numpy_helper.to_array(proto.graph.initializer[0]))
    with pytest.raises(TypeError):
        executor.initializers["w1"] = torch.zeros(1)


def test_initializers_that_are_also_graph_inputs_are_not_inputs():
    proto = perceptron()
    proto.graph.input.append(helper.make_tensor_value_info("w1", FLOAT, [4, 3]))
    assert Executor(proto).inputs == ("x",)


@pytest.mark.parametrize(
    "attributes",
    [
        {"value": numpy_helper.from_array(np.array([2.0, 3.0], np.float32))},
        {"value_floats": [2.0, 3.0]},
        {"value_float": 2.5},
    ],
)
def test_constant_nodes_count_as_initializers(attributes):
    nodes = [
        node("Constant", [], ["c"], **attributes),
        node("Identity", ["c"], ["d"]),
        node("Mul", ["x", "d"], ["y"]),
    ]
    executor = Executor(model(nodes, {"x": (FLOAT, [2])}, {"y": FLOAT}))
    c = executor.initializers["c"].clone().requires_grad_()
    y = executor.run({"x": torch.ones(2), "c": c})["y"]
    (gradient,) = torch.autograd.grad(y.sum(), c)
    torch.testing.assert_close(gradient.sum(), torch.tensor(2.0))


def test_any_tensor_can_be_asked_for_and_given():
    executor = Executor(perceptron())
    x, a = torch.randn(5, 3), torch.randn(5, 4)
    both = executor.run({"x": x}, ["h", "y", "w1", "x"])
    torch.testing.assert_close(both["h"], x @ executor.initializers["w1"].T + executor.initializers["b1"])
    assert both["x"] is x and both["w1"] is executor.initializers["w1"]
    torch.testing.assert_close(executor.run({"a": a})["y"], a @ executor.initializers["w2"])
    assert executor.run({"a": a}, ["a"])["a"] is a


def test_a_given_output_stays_where_its_node_runs_for_another():
    nodes = [node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2), node("Mul", ["a", "b"], ["y"])]
    executor = Executor(model(nodes, {"x": (FLOAT, [2, 6])}, {"y": FLOAT}))
    x, a = torch.randn(2, 6), torch.randn(2, 3, requires_grad=True)
    found = executor.run({"x": x, "a": a}, ["a", "b", "y"])
    assert found["a"] is a
    torch.testing.assert_close(found["y"], a * x[:, 3:])
    (gradient,) = torch.autograd.grad(found["y"].sum(), a)
    torch.testing.assert_close(gradient, x[:, 3:])


def test_a_given_output_of_integers_stays_as_well():
    """The node could be computed once for all: it reads constants alone."""
    sizes = {"sizes": np.array([1, 2], np.int64), "rows": np.array([[5, 6, 7]], np.int64)}
    nodes = [node("Split", ["rows", "sizes"], ["a", "b"], axis=1), node("Add", ["x", "a"], ["y"])]
    nodes.append(node("Add", ["y", "b"], ["z"]))
    executor = Executor(model(nodes, {"x": (INT64, [1, 2])}, {"z": INT64}, sizes))
    x, a = torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[1]])
    assert executor.run({"x": x})["z"].tolist() == [[11, 12]]
    assert executor.run({"x": x, "a": a})["z"].tolist() == [[7, 8]]
    assert executor.run({"x": x})["z"].tolist() == [[11, 12]]


def test_what_is_unchanged_is_enough_to_compute_what_changes():
    """A branch beside the changed tensor is given, the tensors in front of it aren't needed."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Relu", ["h"], ["a"]),
        node("Tanh", ["x"], ["side"]),
        node("Mul", ["a", "side"], ["m"]),
        node("Shape", ["x"], ["size"]),
        node("Reshape", ["m", "size"], ["y"]),
    ]
    executor = Executor(model(nodes, {"x": (FLOAT, ["n", 3])}, {"y": FLOAT, "h": FLOAT}, {"w": f(3, 3)}))
    assert executor.entries("w") == ("h",)
    assert set(executor.unchanged(["a"], ["y", "h"])) == {"side", "size", "h"}
    assert set(executor.unchanged(["w"], ["y"])) == {"x", "side", "size"}
    x = torch.randn(4, 3)
    found = executor.run({"x": x}, ["side", "size", "h", "a"])
    given = {name: found[name] for name in ("side", "size")} | {"a": found["a"] + 1}
    torch.testing.assert_close(executor.run(given, ["y"])["y"], (found["a"] + 1) * x.tanh())


def test_shared_weights_get_the_sum_of_their_gradients():
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "w"], ["y"])]
    executor = Executor(model(nodes, {"x": (FLOAT, [2, 3])}, {"y": FLOAT}, {"w": f(3, 3)}))
    w, x = executor.initializers["w"].clone().requires_grad_(), torch.randn(2, 3)
    torch.testing.assert_close(
        torch.autograd.grad(executor.run({"x": x, "w": w})["y"].sum(), w),
        torch.autograd.grad((x @ w @ w).sum(), w),
    )


def test_only_needed_nodes_run(monkeypatch):
    executor = Executor(chain(9))
    plan = executor._program.plan(("t4",), frozenset({"t2"}))
    assert [step.node.outputs for step in plan.steps] == [("t3",), ("t4",)]
    assert executor.run({"t2": torch.ones(1)}, ["t4"])["t4"].item() == 4


# -- memory


def test_intermediate_tensors_are_freed_after_their_last_use(monkeypatch):
    alive, most = weakref.WeakSet(), []
    original = registry.find("Add", "")

    def add(context, a, b):
        result = a + b
        alive.add(result)
        most.append(len(alive))
        return result

    table = registry._load()
    monkeypatch.setitem(table, ("", "Add"), dataclasses.replace(original, function=add))
    executor = Executor(chain(50))
    results = executor.run({"x": torch.ones(3)}, ["t20", "t50"])
    gc.collect()
    assert max(most) <= 3  # the result kept, the input and the output of the running node
    assert len(alive) == len(results) == 2


# -- shapes


def test_shape_arithmetic_follows_the_batch():
    nodes = [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["n"], axis=0),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Concat", ["n1", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["flat"]),
        node("Slice", ["flat", "axis", "n1", "axis"], ["cut"]),
        node("ConstantOfShape", ["n1"], ["zeros"], value=helper.make_tensor("v", FLOAT, [1], [1.0])),
        node("Unsqueeze", ["zeros", "one"], ["column"]),
        node("Add", ["flat", "column"], ["y"]),
    ]
    constants = {"zero": np.int64(0), "axis": np.array([0]), "one": np.array([1]), "minus": np.array([-1])}
    outputs = {"y": FLOAT, "cut": FLOAT, "target": INT64}
    proto = model(nodes, {"x": (FLOAT, ["n", 2, 3])}, outputs, constants)
    executor = Executor(proto)
    for n in (1, 4):
        x = f(n, 2, 3)
        ours = executor.run({"x": torch.tensor(x)})
        for name, expected in zip(outputs, onnxruntime_outputs(proto, {"x": x}), strict=True):
            np.testing.assert_allclose(ours[name].numpy(), expected)


def test_a_constant_that_acts_as_attribute_can_be_given():
    proto = model([node("Reshape", ["x", "s"], ["y"])], {"x": FLOAT}, {"y": FLOAT}, {"s": np.array([2, 3])})
    executor = Executor(proto)
    assert executor.run({"x": torch.ones(6)})["y"].shape == (2, 3)
    assert executor.run({"x": torch.ones(6), "s": torch.tensor([3, 2])})["y"].shape == (3, 2)
    assert executor.run({"x": torch.ones(6)})["y"].shape == (2, 3)


# -- errors


def graph_of(name, nodes, inputs, outputs, constants=()):
    infos = [[helper.make_tensor_value_info(n, k, s) for n, k, s in values] for values in (inputs, outputs)]
    return helper.make_graph(nodes, name, *infos, list(constants))


def unknown():
    inner = graph_of("t", [node("Strange", ["x"], ["t"], name="deep", domain="far")], [], [("t", FLOAT, None)])
    other = graph_of("e", [node("Identity", ["x"], ["e"])], [], [("e", FLOAT, None)])
    nodes = [
        node("If", ["c"], ["h"], then_branch=inner, else_branch=other),
        node("StringNormalizer", ["h"], ["y"]),
    ]
    proto = model(nodes, {"c": (TensorProto.BOOL, []), "x": FLOAT}, {"y": FLOAT})
    proto.opset_import.append(helper.make_opsetid("far", 3))
    return proto


def test_unsupported_operators_are_found_in_subgraphs_too():
    assert unsupported_operators(unknown()) == [
        UnsupportedOperator("Strange", "far", 3, "deep"),
        UnsupportedOperator("StringNormalizer", "", 18, "y"),
    ]
    assert unsupported_operators(perceptron()) == []


def test_an_unsupported_operator_is_named_where_it_is_to_run():
    executor = Executor(unknown())
    values = {"c": torch.tensor(True), "x": torch.ones(2)}
    with pytest.raises(UnsupportedOperatorError, match=r"no operator Strange \(domain 'far', opset 3\).*'deep'"):
        executor.run(values, ["h"])
    with pytest.raises(UnsupportedOperatorError, match=r"no operator StringNormalizer \(domain 'ai.onnx', opset 18\)"):
        executor.run({"h": torch.ones(2)}, ["y"])
    np.testing.assert_array_equal(executor.run(values | {"c": torch.tensor(False)}, ["h"])["h"], np.ones(2))


def test_a_graph_that_onnxruntime_has_optimized_is_told_from_others():
    proto = model([node("FusedConv", ["x"], ["y"], domain="com.microsoft")], {"x": FLOAT}, {"y": FLOAT})
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedOperatorError, match="as it was before onnxruntime optimized it"):
        Executor(proto).run({"x": torch.ones(2)})


def test_a_missing_input_is_named():
    nodes = [node("Add", ["a", "b"], ["y"]), node("Neg", ["a"], ["z"])]
    executor = Executor(model(nodes, {"a": (FLOAT, [2]), "b": (FLOAT, [2])}, {"y": FLOAT, "z": FLOAT}))
    with pytest.raises(DataError, match="graph input 'b' is missing"):
        executor.run({"a": torch.ones(2)})
    assert set(executor.run({"a": torch.ones(2)}, ["z"])) == {"z"}


@pytest.mark.parametrize(
    ("values", "outputs", "message"),
    [
        ({"x": torch.ones(2, 3), "nowhere": torch.ones(1)}, None, "no tensor 'nowhere' to be given"),
        ({"x": torch.ones(2, 3)}, ["nowhere"], "no tensor 'nowhere' to be computed"),
        ({"x": torch.ones(2, 3, dtype=torch.int64)}, None, "declared FLOAT but a torch.int64"),
        ({"x": torch.ones(2, 4)}, None, r"has shape \[2, 4\] where \[n, 3\] is declared"),
        ({"x": torch.ones(3)}, None, r"has shape \[3\]"),
    ],
)
def test_wrong_data_is_named(values, outputs, message):
    with pytest.raises(DataError, match=message):
        Executor(perceptron()).run(values, outputs)


def test_strings_are_refused_where_they_are_needed():
    text = helper.make_tensor("t", TensorProto.STRING, [1], [b"a"])
    nodes = [
        node("Identity", ["x"], ["y"]),
        node("Identity", ["t"], ["z"]),
        node("Constant", [], ["c"], value_strings=["a", "b"]),
        node("Gather", ["c", "i"], ["w"]),
    ]
    words = dict.fromkeys(["z", "w"], TensorProto.STRING)
    executor = Executor(model(nodes, {"x": FLOAT, "i": TensorProto.INT64}, {"y": FLOAT, **words}, {"t": text}))
    assert executor.run({"x": torch.ones(2)}, ["y"])["y"].tolist() == [1, 1]
    for output, constant in (("z", "t"), ("w", "c")):
        with pytest.raises(ModelError, match=f"constant '{constant}' holds strings"):
            executor.run({"x": torch.ones(2), "i": torch.tensor([1])}, [output])


def test_a_failing_node_is_named():
    proto = model([node("Add", ["a", "b"], ["y"], name="sum")], {"a": FLOAT, "b": FLOAT}, {"y": FLOAT})
    with pytest.raises(RuntimeError) as caught:
        Executor(proto).run({"a": torch.ones(2), "b": torch.ones(3)})
    assert "Add node 'sum'" in caught.value.__notes__[0]
