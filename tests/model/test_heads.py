"""Which tensor a loss is put on, and which loss."""

import numpy as np
import pytest
import torch
from joined_graphs import joined, level
from onnx import TensorProto, helper
from small_graphs import f, model, node

from amq_onnx.errors import ModelError, UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.heads import LEFT_OUT, find_heads, heads_with, weighed

SCORES = {"x": ["n", 5]}


def found(nodes, outputs=None, constants=None, loss="auto", inputs=SCORES):
    heads, left_out = find_heads(model(nodes, inputs, outputs or {"y": None}, constants), loss)
    return [(head.tensor, head.loss, head.axis) for head in heads], left_out


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([node("Softmax", "x", "y", axis=1)], ("x", "softmax", 1)),
        ([node("LogSoftmax", "x", "y")], ("x", "softmax", -1)),
        ([node("Sigmoid", "x", "y")], ("x", "sigmoid", -1)),
        ([node("Softmax", "x", "s"), node("Unsqueeze", "s axes", "y")], ("x", "softmax", -1)),
        ([node("Relu", "x", "y")], ("y", "softmax", -1)),
        (
            [node("Exp", "x", "e"), node("ReduceSum", "e axes", "s"), node("Div", "e s", "y")],
            ("x", "softmax", 1),
        ),
        (
            [node("Exp", "x", "e"), node("ReduceSum", "e axes", "s"), node("Div", "s e", "y")],
            ("y", "softmax", -1),
        ),
    ],
    ids=["softmax", "log softmax", "sigmoid", "reshaped behind", "logits", "written out", "not a softmax"],
)
def test_what_auto_takes(nodes, expected):
    heads, _ = found(nodes, constants={"axes": np.array([1])})
    assert heads == [expected]


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("logits", ["n", "t", 30], ("softmax", 2)),
        ("pred_logits", ["n", 4, "classes"], ("softmax", 2)),
        ("logits", ["n", 21, 8, 8], ("softmax", 1)),
        ("logits", ["n", "t", 1], ("squared", -1)),
        ("logits", ["n", 30, 2, 2, 2], ("squared", -1)),
        ("hidden", ["n", "t", 30], ("squared", -1)),
    ],
)
def test_logits_by_their_name(name, shape, expected):
    proto = model([node("Relu", "x", name)], {"x": shape}, {name: shape})
    heads, _ = find_heads(proto)
    assert [(head.tensor, head.loss, head.axis) for head in heads] == [(name, *expected)]


def test_one_column_is_no_classifier_and_integers_are_left_out():
    nodes = [node("MatMul", "x w", "y"), node("ArgMax", "x", "z")]
    heads, left_out = found(nodes, {"y": None, "z": (TensorProto.INT64, None)}, {"w": f(5, 1)})
    assert heads == [("y", "squared", -1)]
    assert "not a float" in left_out["z"]


@pytest.mark.parametrize("classes", [{"classlabels_int64s": range(5)}, {"classlabels_strings": list("abcde")}])
def test_maps_from_classes_to_scores(classes):
    nodes = [
        node("Softmax", "x", "p"),
        helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", **classes),
        node("Relu", "x", "r"),
        helper.make_node("ZipMap", ["r"], ["z"], domain="ai.onnx.ml", **classes),
    ]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])], [])
    for name in ("y", "z"):
        graph.output.add().name = name
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)])
    heads, left_out = find_heads(proto)
    assert [(head.tensor, head.loss, head.output) for head in heads] == [("x", "softmax", "y"), ("r", "softmax", "z")]
    assert left_out == {}


def test_a_loss_asked_for_is_taken_on_every_output():
    assert found([node("Relu", "x", "y")], loss="squared")[0] == [("y", "squared", -1)]


def test_a_model_without_a_float_output_is_refused():
    proto = model([helper.make_node("ArgMax", ["x"], ["y"])], SCORES, {"y": (TensorProto.INT64, [1, 5])})
    with pytest.raises(ModelError, match="no float output"):
        find_heads(proto)


TWO = [node("Relu", "x", "scores"), node("Sigmoid", "x", "boxes")]


@pytest.mark.parametrize(
    ("loss", "expected", "left"),
    [
        ("scores=sigmoid", [("scores", "sigmoid"), ("x", "sigmoid")], set()),
        ("scores=squared,boxes=softmax", [("scores", "squared"), ("x", "softmax")], set()),
        ("boxes=none", [("scores", "softmax")], {"boxes"}),
        ("boxes=auto,scores=none", [("x", "sigmoid")], {"scores"}),
    ],
)
def test_a_loss_for_each_output(loss, expected, left):
    heads, left_out = found(TWO, {"scores": None, "boxes": None}, loss=loss)
    assert [head[:2] for head in heads] == expected
    assert set(left_out) == left
    # What a table remembers gives the same heads again.
    proto = model(TWO, SCORES, {"scores": None, "boxes": None})
    heads, left_out = find_heads(proto, loss)
    chosen = {head.tensor: f"{head.loss}: {head.why}" for head in heads}
    chosen |= {name: f"{LEFT_OUT}{reason}" for name, reason in left_out.items()}
    assert [(head.tensor, head.loss) for head in heads_with(proto, chosen)] == expected


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("hinge", "use auto, softmax"),
        ("scores=hinge", "use auto, softmax"),
        ("none", "use auto, softmax"),
        ("=sigmoid", "use auto, softmax"),
        ("scores=sigmoid,", "use auto, softmax"),
        ("other=sigmoid", "no output 'other': its outputs are scores, boxes"),
    ],
)
def test_losses_that_are_not_there(loss, said):
    with pytest.raises(UsageError, match=said):
        found(TWO, {"scores": None, "boxes": None}, loss=loss)


def test_no_output_left():
    with pytest.raises(ModelError, match="leaves all out"):
        found(TWO, {"scores": None, "boxes": None}, loss="scores=none,boxes=none")


def detector(kind="Sigmoid", opset=18):
    """Scores [n, 3, 5] behind `kind` and boxes [n, 3, 4]."""
    nodes = [node("MatMul", "x w", "logits"), node(kind, "logits", "scores"), node("MatMul", "x v", "boxes")]
    constants = {"w": f(6, 5), "v": f(6, 4)}
    return model(nodes, {"x": ["n", 3, 6]}, {"scores": None, "boxes": None}, constants, opset=opset)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("kind", ["Sigmoid", "Softmax"])
def test_squared_errors_can_be_weighed_by_probabilities(kind, opset):
    proto = detector(kind, opset)
    heads, left_out = find_heads(proto, "boxes=squared*scores")
    assert [(head.tensor, head.source, head.loss) for head in heads] == [
        ("logits", "logits", kind.lower()),
        ("boxes*scores", "boxes", "squared"),
    ]
    assert not left_out
    measured = weighed(proto, heads)
    assert measured is not proto and "boxes*scores" not in [output.name for output in measured.graph.output]
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((4, 3, 6)).astype(np.float32))
    found = Executor(measured).run({"x": x}, ["scores", "boxes", "boxes*scores"])
    highest = found["scores"].amax(-1, keepdim=True)
    torch.testing.assert_close(found["boxes*scores"].square(), highest * found["boxes"].square())


def test_a_weight_that_vanishes_has_a_derivative():
    proto = detector()
    heads, _ = find_heads(proto, "boxes=squared*scores")
    x = (-1e4 * torch.ones(1, 3, 6)).requires_grad_()
    (found,) = Executor(weighed(proto, heads)).run({"x": x}, ["boxes*scores"]).values()
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.isfinite().all()


def test_weighed_losses_are_found_again_from_a_table():
    proto = detector()
    for loss in ("boxes=squared*scores", "scores=none,boxes=squared*scores", "boxes=squared"):
        heads, left_out = find_heads(proto, loss)
        chosen = {head.source: head.story for head in heads} | {name: LEFT_OUT + why for name, why in left_out.items()}
        again = heads_with(proto, chosen)
        assert [(head.tensor, head.loss) for head in again] == [(head.tensor, head.loss) for head in heads]
    assert weighed(proto, heads) is proto


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("boxes=squared*other", "no float output 'other'"),
        ("boxes=squared*scores,scores=squared", "which has no probabilities: add scores=sigmoid"),
        ("boxes=sigmoid*scores", "use auto"),
        ("boxes=squared*", "use auto"),
        ("squared*scores", "use auto"),
    ],
)
def test_weights_that_are_not_there(loss, message):
    with pytest.raises(UsageError, match=message):
        find_heads(detector(), loss)


def as_found(proto, loss="auto"):
    return [(head.tensor, head.loss, head.weigher and head.weigher.tensor) for head in find_heads(proto, loss)[0]]


ONE_LEVEL = [*level(0), node("Identity", "j0", "y")]
TWO_LEVELS = [*level(0), *level(1), node("Concat", "j0 j1", "j", axis=2), node("Transpose", "j", "y", perm=[0, 2, 1])]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (ONE_LEVEL, [("b0*y", "squared", "l0"), ("l0", "sigmoid", None)]),
        (
            TWO_LEVELS,
            [
                ("b0*y", "squared", "l0"),
                ("l0", "sigmoid", None),
                ("b1*y", "squared", "l1"),
                ("l1", "sigmoid", None),
            ],
        ),
        ([*level(0, "Softmax"), node("Identity", "j0", "y")], [("b0", "squared", None), ("l0", "softmax", None)]),
        ([*level(0, "Relu"), node("Identity", "j0", "y")], [("y", "squared", None)]),
        (
            [*level(0)[1:3], node("Concat", "anchors s0", "y", axis=1)],
            [("l0", "sigmoid", None)],
        ),
        (
            [
                *level(0)[1:3],
                node("Split", "s0 sizes", "first second", axis=1),
                node("Exp", "first", "sides"),
                node("Concat", "sides second", "y", axis=1),
            ],
            [("sides", "squared", None), ("l0", "sigmoid", None)],
        ),
    ],
    ids=["one level", "two levels", "softmax", "no probabilities", "constants", "probabilities in two"],
)
def test_what_an_output_joins(nodes, expected):
    constants = {"anchors": f(1, 1, 6), "sizes": np.array([2, 3])}
    assert as_found(joined(nodes, **constants)) == expected


def test_boxes_are_weighed_by_the_scores_of_their_own_level():
    proto = joined(TWO_LEVELS)
    heads, _ = find_heads(proto)
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 8, 6)).astype(np.float32))
    found = Executor(weighed(proto, heads)).run({"x": x}, ["b1", "s1", "b1*y"])
    torch.testing.assert_close(found["b1*y"].square(), found["s1"].amax(1, keepdim=True) * found["b1"].square())


@pytest.mark.parametrize("loss", ["auto", "squared", "y=squared", "y=auto"])
@pytest.mark.parametrize("nodes", [ONE_LEVEL, TWO_LEVELS], ids=["one level", "two levels"])
def test_parts_are_found_again_from_a_table(nodes, loss):
    proto = joined(nodes)
    heads, _ = find_heads(proto, loss)
    again = heads_with(proto, {head.source: head.story for head in heads})
    assert [(head.tensor, head.loss) for head in again] == [(head.tensor, head.loss) for head in heads]
    assert (len(heads) == 1) == ("squared" in loss)
