"""Rewrites that see inside If and Loop; onnxruntime computes the same before and after."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_graphs import assert_same_outputs, f, infos, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.fold_constants import FoldConstants
from amq_onnx.passes.hoist import HoistConstants
from amq_onnx.passes.inline_if import InlineConstantIf
from amq_onnx.passes.loop_invariants import ReadInvariantsOutside
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


def loop(body, inputs, outputs):
    return helper.make_node("Loop", ["count", "", *inputs.split()], outputs.split(), body=body)


def body(nodes, carried, outputs):
    """A Loop's, which goes on; carried: values by name and shape; outputs: what it hands out."""
    kept = [node("Identity", "condition", "go"), *nodes]
    given = [("step", TensorProto.INT64, []), ("condition", TensorProto.BOOL, [])]
    given += [(name, TensorProto.FLOAT, shape) for name, shape in carried.items()]
    results = [helper.make_tensor_value_info("go", TensorProto.BOOL, [])]
    results += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()]
    return helper.make_graph(kept, "body", [helper.make_tensor_value_info(*info) for info in given], results)


COUNT = {"count": np.array(3)}


def interface(proto):
    (inner,) = subgraphs(proto.graph)
    return [value.name for value in inner.input], [value.name for value in inner.output]


def test_weights_that_a_loop_carries_are_read_outside_and_become_sites():
    """As tf2onnx writes Keras' GRU: one handed on as it came, one through Identity, one read behind the loop too."""
    nodes = [node("MatMul", "h w", "p"), node("Add", "p b", "q"), node("Tanh", "q", "h2"), node("Identity", "b", "b2")]
    inner = body(nodes, {"h": ["n", 4], "w": [4, 4], "b": [4]}, "h2 w b2")
    steps = [loop(inner, "x W B", "last w_last b_last"), node("MatMul", "last w_last", "y")]
    before = model(steps, SQUARE, {"y": ["n", 4]}, {"W": f(4, 4), "B": f(4)} | COUNT)
    after = run(before, [ReadInvariantsOutside()])
    assert interface(after) == (["step", "condition", "h"], ["go", "h2"])
    assert_same_outputs(before, after, {"x": f(3, 4)})
    assert run(after, [ReadInvariantsOutside()]) is after
    assert [site.name for site in prepare(before).sites.weights] == ["W"]


def test_a_scan_too_and_what_branches_inside_it_read():
    chosen = choose("yes", graph([node("MatMul", "h w", "t")], ["t"]), graph([node("Add", "h w", "e")], ["e"]), "p")
    given = {"h": [4, 4], "w": [4, 4], "row": [4]}
    inner = helper.make_graph(
        [chosen, node("Add", "p row", "h2"), node("ReduceSum", "h2", "s", keepdims=0), node("Identity", "w", "w2")],
        "body", infos(given), infos({"h2": [4, 4], "w2": [4, 4], "s": []}),
    )  # fmt: skip
    scan = helper.make_node("Scan", ["x", "W", "rows"], ["last", "w_last", "y"], body=inner, num_scan_inputs=1)
    inputs = {"x": [4, 4], "rows": [3, 4], "yes": (TensorProto.BOOL, [])}
    before = model([scan, node("Relu", "last", "z")], inputs, {"y": [3], "z": [4, 4]}, {"W": f(4, 4)})
    after = run(before, [ReadInvariantsOutside()])
    assert [value.name for value in after.graph.node[0].attribute[0].g.input] == ["h", "row"]
    for condition in (True, False):
        assert_same_outputs(before, after, {"x": f(4, 4), "rows": f(3, 4), "yes": np.array(condition)})


@pytest.mark.parametrize(
    ("outputs", "last", "results"),
    [
        ("h2 w w", "last w_last stacked", {"y": [4, 4]}),
        ("h2 w", "last w_last", {"y": [4, 4], "w_last": [4, 4]}),
        ("w h2", "last w_last", {"y": [4, 4]}),
    ],
    ids=["handed out twice", "an output of the graph", "two that change places"],
)
def test_carried_values_that_stay(outputs, last, results):
    inner = body([node("MatMul", "h w", "p"), node("Tanh", "p", "h2")], {"h": [4, 4], "w": [4, 4]}, outputs)
    steps = [loop(inner, "x W", last), node("Relu", "last", "y")]
    before = model(steps, {"x": [4, 4]}, results, {"W": f(4, 4)} | COUNT)
    assert run(before, [ReadInvariantsOutside()]) is before
