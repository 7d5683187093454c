"""Rewrites that see inside If and Loop; onnxruntime computes the same before and after."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_graphs import assert_same_outputs, f, infos, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.fold_constants import FoldConstants
from amq_onnx.passes.hoist import HoistConstants
from amq_onnx.passes.inline_if import InlineConstantIf
from amq_onnx.passes.normalize import ConstantsToInitializers
from amq_onnx.passes.subgraphs import subgraphs
from amq_onnx.rewriting import prepare

SQUARE = {"x": ["n", 4]}


def graph(nodes, outputs, **tensors):
    made = [helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.ravel()) for name, value in tensors.items()]
    return helper.make_graph(nodes, outputs[0], [], [infos({name: None})[0] for name in outputs], made)


def choose(condition, then, other, outputs="a"):
    return helper.make_node("If", [condition], outputs.split(), then_branch=then, else_branch=other)


def kinds(proto):
    return operators(proto), [[item.op_type for item in inner.node] for inner in subgraphs(proto.graph)]


@pytest.mark.parametrize(("taken", "kind"), [(True, "Neg"), (False, "Abs")])
def test_the_branch_taken_stands_where_the_if_was(taken, kind):
    branches = graph([node("Neg", "x", "t")], ["t"]), graph([node("Abs", "x", "e")], ["e"])
    nodes = [choose("c", *branches), node("Relu", "a", "y")]
    before = model(nodes, SQUARE, {"y": ["n", 4]}, {"c": np.array(taken)})
    after = run(before, [InlineConstantIf()])
    assert kinds(after) == ([kind, "Relu"], [])
    assert_same_outputs(before, after, {"x": f(3, 4)})
    assert run(after, [InlineConstantIf()]) is after


def test_what_a_branch_only_hands_out_comes_through_an_identity():
    """An outer tensor, a constant, and one that the branch reads itself."""
    then = graph(
        [node("Neg", "x", "t"), node("Abs", "t", "u"), node("Identity", "x", "v")], ["u", "t", "v", "k"], k=f(4)
    )
    other = graph([node("Neg", "x", name) for name in "defg"], list("defg"))
    nodes = [choose("c", then, other, "a b p q"), *(node("Relu", name, f"{name}y") for name in "abpq")]
    outputs = {f"{name}y": None for name in "abpq"}
    before = model(nodes, SQUARE, {name: ["n", 4] for name in outputs} | {"qy": [4]}, {"c": np.array(True)})
    after = run(before, [InlineConstantIf()])
    assert operators(after).count("Identity") == 3  # the last is the branch's own
    assert_same_outputs(before, after, {"x": f(3, 4)})


def test_names_that_two_branches_share_are_told_apart():
    def twice(condition, output):
        return choose(condition, graph([node("Neg", "x", "t"), node("Exp", "t", "u")], ["u"]),
                      graph([node("Abs", "x", "u")], ["u"]), output)  # fmt: skip

    nodes = [twice("c", "a"), twice("c", "b"), node("Add", "a b", "y")]
    before = model(nodes, SQUARE, {"y": ["n", 4]}, {"c": np.array(True)})
    after = run(before, [InlineConstantIf()])
    assert kinds(after) == (["Neg", "Neg", "Exp", "Exp", "Add"], [])
    assert_same_outputs(before, after, {"x": f(3, 4)})


def test_nested_ones_are_inlined_and_those_that_an_input_decides_stay():
    inner = choose("yes", graph([node("Exp", "x", "p")], ["p"]), graph([node("Abs", "x", "q")], ["q"]), "r")
    then = graph([inner, node("Neg", "r", "t")], ["t"])
    nodes = [choose("c", then, graph([node("Abs", "x", "e")], ["e"])), node("Relu", "a", "y")]
    inputs = SQUARE | {"c": (TensorProto.BOOL, [])}
    before = model(nodes, inputs, {"y": ["n", 4]}, {"yes": np.array(True)})
    after = run(before, [InlineConstantIf()])
    assert kinds(after) == (["If", "Relu"], [["Abs"], ["Exp", "Neg"]])
    for condition in (True, False):
        assert_same_outputs(before, after, {"x": f(3, 4), "c": np.array(condition)})


def weights_in_a_branch():
    """A branch that sorts its weight's rows, as exporters do with the gates of an LSTM."""
    held = helper.make_node("Constant", [], ["w"], value=helper.make_tensor("", TensorProto.FLOAT, [4, 4], f(16)))
    numbers = {name: helper.make_node("Constant", [], [name], value_ints=[value])
               for name, value in {"zero": 0, "two": 2, "four": 4}.items()}  # fmt: skip
    then = graph(
        [
            held,
            *numbers.values(),
            node("Slice", "w two four zero", "low"),
            node("Slice", "w zero two zero", "high"),
            node("Concat", "low high", "sorted", axis=0),
            node("MatMul", "x sorted", "t"),
        ],
        ["t"],
    )
    nodes = [choose("c", then, graph([node("Abs", "x", "e")], ["e"])), node("MatMul", "a v", "y")]
    return model(nodes, SQUARE | {"c": (TensorProto.BOOL, [])}, {"y": ["n", 4]}, {"v": f(4, 4)})


def test_what_a_branch_computes_from_constants_moves_out_and_is_folded():
    before = weights_in_a_branch()
    hoisted = run(before, [ConstantsToInitializers(), HoistConstants()])
    assert kinds(hoisted) == (["Slice", "Slice", "Concat", "If", "MatMul"], [["Abs"], ["MatMul"]])
    assert run(hoisted, [HoistConstants()]) is hoisted
    folded = run(hoisted, [FoldConstants()])
    assert kinds(folded) == (["If", "MatMul"], [["Abs"], ["MatMul"]])
    for condition in (True, False):
        assert_same_outputs(before, folded, {"x": f(3, 4), "c": np.array(condition)})


def test_such_weights_become_sites():
    assert {site.name: site.shape for site in prepare(weights_in_a_branch()).sites.weights} == {
        "sorted": (4, 4),
        "v": (4, 4),
    }


def test_a_condition_on_a_known_shape_decides():
    """If(shape(x)[1] == 4), as torch writes it around a Squeeze."""
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "g"),
        node("Equal", "g four", "c"),
        choose("c", graph([node("MatMul", "x w", "t")], ["t"]), graph([node("Abs", "x", "e")], ["e"])),
        node("Relu", "a", "y"),
    ]
    constants = {"one": np.array(1), "four": np.array(4), "w": f(4, 4)}
    prepared = prepare(model(nodes, SQUARE, {"y": ["n", 4]}, constants))
    assert kinds(prepared.model) == (["MatMul", "Relu"], [])
