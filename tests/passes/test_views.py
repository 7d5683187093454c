"""Views around convolutions; onnxruntime computes the same before and after, bit for bit but for sums."""

import numpy as np
import pytest
from onnx.shape_inference import infer_shapes
from small_graphs import assert_same_outputs, f, initializers, model, node, operators

from amq_onnx.passes.base import run
from amq_onnx.passes.views import JoinViews, ViewsBehindElementwise
from amq_onnx.rewriting import prepare

LAST, FIRST = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}
IMAGE = {"x": ["n", 3, 6, 6]}
LINE = {"x": ["n", 3, 1, 8]}
AXES = {"two": np.array([2]), "one": np.array([1])}
KERNELS = {"w": f(4, 3, 1, 1), "v": f(5, 4, 1, 1)}


def moved(nodes, inputs=IMAGE, constants=None, outputs=None, tolerance=0.0):
    before = infer_shapes(model(nodes, inputs, outputs or {"y": None}, KERNELS | AXES | (constants or {})))
    after = run(before, [ViewsBehindElementwise()])
    if after is not before:
        shape = [2 if size == "n" else size for size in inputs["x"]]
        assert_same_outputs(before, after, {"x": f(*shape)}, tolerance)
        assert run(after, [ViewsBehindElementwise()]) is after
    return operators(after), after


CONV = [node("Conv", "x w", "c"), node("Transpose", "c", "t", **LAST)]


@pytest.mark.parametrize(
    ("computed", "constants"),
    [
        ([node("Relu", "t", "y")], {}),
        ([node("Clip", "t - six", "y")], {"six": np.float32(6)}),
        ([node("Mul", "t k", "y")], {"k": f(4)}),
        ([node("Sub", "k t", "y")], {"k": f(1, 1, 6, 4)}),
        ([node("Add", "t k", "y")], {"k": f(1)}),
        ([node("PRelu", "t k", "y")], {"k": f(1, 1, 4)}),
        ([node("Sigmoid", "t", "s"), node("Mul", "t s", "y")], {}),
    ],
    ids=["activation", "bounds", "factors", "the other way round", "one number", "slopes", "swish"],
)
def test_what_is_computed_element_by_element_comes_first(computed, constants):
    found, _ = moved(CONV + computed, constants=constants)
    assert found == ["Conv", *(each.op_type for each in computed), "Transpose"]


@pytest.mark.parametrize(("joined", "axis"), [("Add", None), ("Concat", 3), ("Concat", -1), ("Concat", 1)])
def test_two_views_become_one(joined, axis):
    attributes = {} if axis is None else {"axis": axis}
    other = [node("Conv", "x w2", "c2"), node("Transpose", "c2", "t2", **LAST)]
    found, after = moved([*CONV, *other, node(joined, "t t2", "y", **attributes)], constants={"w2": f(4, 3, 1, 1)})
    assert found == ["Conv", "Conv", joined, "Transpose"]
    if axis is not None:
        concat = next(item for item in after.graph.node if item.op_type == "Concat")
        assert concat.attribute[0].i == LAST["perm"][axis]


@pytest.mark.parametrize(
    ("computed", "constants", "views"),
    [
        (node("Pad", "t ends", "y"), {"ends": np.array([0, 1, 2, 0, 0, 3, 4, 0])}, 1),
        (node("Pad", "t ends k", "y", mode="constant"), {"ends": np.arange(8), "k": np.float32(2)}, 1),
        (node("ReduceMean", "t axes", "y"), {"axes": np.array([1, 2])}, 1),
        (node("ReduceMax", "t axes", "y", keepdims=0), {"axes": np.array([1, -2])}, 0),
        (node("ReduceSum", "t axes", "y", keepdims=0), {"axes": np.array([2, 3])}, 0),
    ],
    ids=["pad", "pad with a number", "mean", "maximum of places", "sum over channels"],
)
def test_operators_that_name_dimensions_name_others(computed, constants, views):
    summed = computed.op_type in ("ReduceMean", "ReduceSum")
    found, _ = moved([*CONV, computed], constants=constants, tolerance=1e-6 if summed else 0.0)
    assert found == ["Conv", computed.op_type, *["Transpose"] * views]


def test_axes_that_are_attributes_too():
    """As up to opset 17."""
    before = infer_shapes(
        model([*CONV, node("ReduceMean", "t", "y", axes=[1, 2], keepdims=0)], IMAGE, {"y": None}, KERNELS, opset=13)
    )
    after = run(before, [ViewsBehindElementwise()])
    assert operators(after) == ["Conv", "ReduceMean"]
    assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)}, 1e-6)


def test_a_gate_of_one_value_a_channel():
    gate = [node("GlobalAveragePool", "c", "p"), node("Conv", "p v2", "g"), node("Transpose", "g", "s", **LAST)]
    nodes = [*CONV, *gate, node("Mul", "s t", "m"), node("Relu", "m", "y")]
    found, _ = moved(nodes, constants={"v2": f(4, 4, 1, 1)})
    assert found[-3:] == ["Mul", "Relu", "Transpose"]


@pytest.mark.parametrize("size", [(1, 4, 1), (4, 8), (4, 1), (1, 1, 1)])
def test_dimensions_of_one_come_back_behind_factors(size):
    """As tf2onnx writes a Keras Conv1D and its norm."""
    nodes = [node("Conv", "x w", "c"), node("Squeeze", "c two", "q"), node("Mul", "q k", "m"), node("Relu", "m", "y")]
    found, after = moved(nodes, LINE, {"k": f(*size)})
    assert found == ["Conv", "Mul", "Relu", "Squeeze"]
    assert initializers(after)["k_0"].ndim == 4


def test_and_those_that_an_unsqueeze_adds():
    nodes = [node("Conv", "x w", "c"), node("Unsqueeze", "c two", "q"), node("Mul", "q k", "y")]
    found, after = moved(nodes, constants={"k": f(4, 1, 6, 6)})
    assert found == ["Conv", "Mul", "Unsqueeze"]
    assert initializers(after)["k_0"].shape == (1, 4, 6, 6)


@pytest.mark.parametrize(
    ("nodes", "outputs", "constants"),
    [
        ([*CONV, node("Softmax", "t", "s"), node("Relu", "t", "r"), node("Mul", "r s", "y")], None, {}),
        ([*CONV, node("Relu", "t", "y")], {"t": None, "y": None}, {}),
        ([node("Transpose", "x", "t", **LAST), node("Relu", "t", "y")], None, {}),
        ([*CONV, node("Add", "t k", "y")], None, {"k": f(5, 1, 1, 1, 1)}),
        ([*CONV, node("ReduceMean", "x", "p"), node("Add", "t p", "y")], None, {}),
        ([*CONV, node("Concat", "t k", "y", axis=1)], None, {"k": f(2, 2, 6, 4)}),
        ([*CONV, node("Pad", "t e - a", "y")], None, {"e": np.array([1, 1]), "a": np.array([1])}),
        ([*CONV, node("ReduceMean", "t a", "y", keepdims=0)], None, {"a": np.array([1])}),
        ([*CONV, node("ReduceMean", "t", "y")], None, {}),
        ([*CONV, node("Transpose", "c", "u", perm=[0, 3, 2, 1]), node("Add", "t u", "y")], None, {}),
    ],
    ids=["another reader", "an output", "no convolution", "more dimensions", "another tensor", "a constant to join",
         "padded dimensions that are named", "dimensions left in another order", "all dimensions", "another order"],
)  # fmt: skip
def test_views_that_stay(nodes, outputs, constants):
    before = infer_shapes(model(nodes, {"x": [2, 3, 6, 6]}, outputs or {"y": None}, KERNELS | constants))
    assert run(before, [ViewsBehindElementwise()]) is before


def test_a_constant_that_adds_elements_stays_behind_the_view():
    nodes = [node("Conv", "x w", "c"), node("Squeeze", "c two", "q"), node("Mul", "q k", "y")]
    assert moved(nodes, {"x": ["n", 3, 1, 1]}, {"k": f(1, 4, 7)})[0] == ["Conv", "Squeeze", "Mul"]


def test_views_of_one_place_and_other_ranks_stay_apart():
    """[2, 1, 3, 6] and [3, 1, 6], each without its second dimension."""
    nodes = [node("Conv", "x w", "c"), node("Squeeze", "c one", "q"), node("Relu", "z", "r"),
             node("Squeeze", "r one", "s"), node("Add", "q s", "y")]  # fmt: skip
    before = infer_shapes(
        model(nodes, {"x": [2, 3, 3, 6], "z": [3, 1, 6]}, {"y": None}, {"w": f(1, 3, 1, 1), "one": np.array([1])})
    )
    assert run(before, [ViewsBehindElementwise()]) is before


@pytest.mark.parametrize(
    ("views", "left"),
    [
        ([("Transpose", LAST), ("Transpose", FIRST)], None),
        ([("Squeeze", "two"), ("Unsqueeze", "two")], None),
        ([("Squeeze", "two"), ("Transpose", {"perm": [0, 2, 1]}), ("Unsqueeze", "one"), ("Transpose", FIRST)], None),
        ([("Squeeze", "two"), ("Transpose", {"perm": [0, 2, 1]}), ("Unsqueeze", "two"), ("Transpose", FIRST)],
         [0, 1, 3, 2]),
        ([("Transpose", LAST), ("Transpose", LAST)], [0, 3, 1, 2]),
        ([("Transpose", {}), ("Transpose", {"perm": [0, 3, 2, 1]})], [3, 0, 1, 2]),
    ],
    ids=["two orders", "a dimension of one", "both", "at another place", "one order of two", "reversed"],
)  # fmt: skip
def test_views_one_after_another_become_one_or_none(views, left):
    nodes, last = [node("Relu", "x", "t0")], 0
    for number, (operator, given) in enumerate(views):
        attributes = given if isinstance(given, dict) else {}
        inputs = f"t{number}" if isinstance(given, dict) else f"t{number} {given}"
        nodes.append(node(operator, inputs, f"t{number + 1}", **attributes))
        last = number + 1
    before = infer_shapes(model([*nodes, node("Exp", f"t{last}", "y")], LINE, {"y": None}, AXES))
    after = run(before, [JoinViews()])
    assert operators(after) == (["Relu", "Exp"] if left is None else ["Relu", "Transpose", "Exp"])
    if left is not None:
        assert list(after.graph.node[1].attribute[0].ints) == left
    assert_same_outputs(before, after, {"x": f(2, 3, 1, 8)})
    assert run(after, [JoinViews()]) is after


def test_views_that_end_with_other_dimensions_or_make_an_output_stay():
    nodes = [
        node("Squeeze", "x two", "a"), node("Transpose", "a", "b", perm=[0, 2, 1]), node("Exp", "b", "y"),
        node("Unsqueeze", "a two", "z"),
    ]  # fmt: skip
    before = infer_shapes(model(nodes, LINE, {"y": None, "z": None}, AXES))
    assert run(before, [JoinViews()]) is before


def test_a_network_of_one_dimension_is_prepared_as_if_it_had_been_written_so():
    """Convolution, norm, swish, twice, from channels last, as tf2onnx writes them."""
    nodes = []
    for number, (source, weight) in enumerate((("x", "w"), ("m0", "v"))):
        c, q, k, t, s, m = (f"{name}{number}" for name in "cqktsm")
        if number:
            nodes += [node("Unsqueeze", "m0 one", "u"), node("Transpose", "u", "back", **FIRST)]
            source = "back"
        nodes += [
            node("Conv", f"{source} {weight}", c), node("Squeeze", f"{c} two", q), node("Mul", f"{q} f{number}", k),
            node("Transpose", k, t, perm=[0, 2, 1]), node("Sigmoid", t, s), node("Mul", f"{t} {s}", m),
        ]  # fmt: skip
    nodes.append(node("ReduceMean", "m1 one", "y", keepdims=0))
    constants = KERNELS | AXES | {"f0": f(1, 4, 1), "f1": f(1, 5, 1)}
    prepared = prepare(model(nodes, LINE, {"y": None}, constants))
    assert operators(prepared.model)[:6] == ["Conv", "Sigmoid", "Mul", "Conv", "Sigmoid", "Mul"]
