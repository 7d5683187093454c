"""Which tensor a loss is put on, and which loss."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_graphs import f, model, node

from amq_onnx.errors import ModelError
from amq_onnx.model.heads import find_heads

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


def test_one_column_is_no_classifier_and_integers_are_left_out():
    nodes = [node("MatMul", "x w", "y"), node("ArgMax", "x", "z")]
    heads, left_out = found(nodes, {"y": None, "z": (TensorProto.INT64, None)}, {"w": f(5, 1)})
    assert heads == [("y", "squared", -1)]
    assert "not a float" in left_out["z"]


def test_a_loss_asked_for_is_taken_on_every_output():
    assert found([node("Relu", "x", "y")], loss="squared")[0] == [("y", "squared", -1)]


def test_a_model_without_a_float_output_is_refused():
    proto = model([helper.make_node("ArgMax", ["x"], ["y"])], SCORES, {"y": (TensorProto.INT64, [1, 5])})
    with pytest.raises(ModelError, match="no float output"):
        find_heads(proto)
