"""The runner of passes: what it checks, and what it carries over that graphsurgeon drops."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, helper
from small_graphs import assert_same_outputs, f, infos, model, node, operators

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import Pass, PassList, run


class RenameOp(Pass):
    """Turns the first `before` into `after`."""

    def __init__(self, before, after):
        self.before, self.after = before, after

    def apply(self, graph):
        for item in graph.nodes:
            if item.op == self.before:
                item.op = self.after
                return True
        return False


class RenameOutput(Pass):
    def apply(self, graph):
        graph.outputs[0].name = "other"
        return True


class Fails(Pass):
    def apply(self, graph):
        raise KeyError("nothing\nhere")


class Refuses(Pass):
    def apply(self, graph):
        raise ModelError("node 'x' is odd")


class Touch(Pass):
    """Reports a change without making one, so that the graph goes through export."""

    def apply(self, graph):
        return True


def chain():
    return model([node("Relu", "x", "a"), node("Abs", "a", "y")], {"x": ["n", 3]}, {"y": ["n", 3]})


def decorated():
    """A model with everything that import and export lose."""
    custom = helper.make_function(
        "my.domain", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    proto = model(
        [node("Relu", "x", "a"), helper.make_node("Twice", ["a"], ["b"], domain="my.domain"), node("Abs", "b", "y")],
        {"x": ["n", 3, None]},
        {"y": ["n", 3, None]},
        {"unused": f(2)},
        extra_opsets=[helper.make_opsetid("my.domain", 1)],
        functions=[custom],
    )
    proto.producer_name, proto.producer_version, proto.domain = "someone", "3.1", "org.example"
    proto.model_version, proto.doc_string, proto.ir_version = 42, "about the model", 9
    proto.metadata_props.add(key="classes", value="cat,dog")
    proto.graph.doc_string, proto.graph.name = "about the graph", "the graph"
    proto.graph.input[0].doc_string = "an image"
    proto.graph.node[0].doc_string = "about the node"
    del proto.graph.initializer[:]
    return proto


def test_what_import_and_export_lose_survives():
    before = decorated()
    after = run(before, [Touch()])
    assert after is not before
    for name in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(after, name) == getattr(before, name), name
    assert list(after.metadata_props) == list(before.metadata_props)
    assert sorted((o.domain, o.version) for o in after.opset_import) == [("", 18), ("my.domain", 1)]
    assert (after.graph.name, after.graph.doc_string) == ("the graph", "about the graph")
    assert after.graph.node[0].doc_string == "about the node"
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert [item.name for item in after.functions] == ["Twice"]
    assert_same_outputs(before, after, {"x": f(2, 3, 2)})


def test_node_and_graph_metadata_survive():
    before = decorated()
    before.ir_version = 10
    before.graph.metadata_props.add(key="graph", value="kept")
    before.graph.node[2].metadata_props.add(key="node", value="kept")
    after = run(before, [Touch()])
    assert [entry.key for entry in after.graph.metadata_props] == ["graph"]
    assert [entry.key for entry in after.graph.node[2].metadata_props] == ["node"]


def test_symbolic_and_unnamed_dimensions_survive():
    after = run(decorated(), [Touch()])
    dims = after.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in dims] == ["n", 3, 0]
    assert not dims[2].HasField("dim_value")


def test_notes_of_nodes_that_a_pass_replaced_are_not_given_to_others():
    before = chain()
    before.graph.node[0].doc_string = "about the Relu"
    after = run(before, [RenameOp("Relu", "Neg")])
    assert operators(after) == ["Neg", "Abs"]
    assert after.graph.node[0].doc_string == ""


def test_the_model_given_is_not_changed():
    before = chain()
    copy = before.SerializeToString()
    run(before, [RenameOp("Relu", "Neg"), RenameOp("Abs", "Neg")])
    assert before.SerializeToString() == copy


def test_a_pass_that_changes_nothing_hands_the_same_model_on():
    before = chain()
    assert run(before, [RenameOp("Sigmoid", "Relu")]) is before


def test_until_stops_and_dump_sees_each_step():
    passes = [RenameOp("Relu", "Neg"), RenameOp("Abs", "Sign"), RenameOp("Neg", "Exp")]
    seen = []
    result = run(
        chain(), passes, until=2, dump=lambda number, rewrite, proto: seen.append((number, rewrite, operators(proto)))
    )
    assert operators(result) == ["Neg", "Sign"]
    assert seen == [(0, passes[0], ["Neg", "Abs"]), (1, passes[1], ["Neg", "Sign"])]
    assert operators(run(chain(), passes, until=0)) == ["Relu", "Abs"]
    assert operators(run(chain(), passes)) == ["Exp", "Sign"]


@pytest.mark.parametrize(
    ("rewrite", "message"),
    [
        (RenameOp("Abs", "Nonsense"), "after pass RenameOp"),
        (RenameOp("Abs", "Add"), "after pass RenameOp"),
        (RenameOutput(), "pass RenameOutput changed the names"),
        (Fails(), "pass Fails failed"),
        (Refuses(), "node 'x' is odd"),
    ],
    ids=["unknown operator", "missing input", "output renamed", "exception", "own error"],
)
def test_a_pass_at_fault_is_named_in_one_line(rewrite, message):
    with pytest.raises(ModelError, match=message) as caught:
        run(chain(), [RenameOp("Relu", "Neg"), rewrite])
    assert "\n" not in str(caught.value)


def test_an_invalid_model_is_refused_before_the_first_pass():
    broken = chain()
    broken.graph.node[1].input[0] = "nowhere"
    with pytest.raises(ModelError, match="before the first pass"):
        run(broken, [Touch()])


def test_a_list_of_passes_is_a_pass_and_runs_all_of_them():
    graph = gs.import_onnx(chain())
    both = PassList([RenameOp("Relu", "Neg"), RenameOp("Abs", "Neg")])
    assert both.apply(graph)
    assert [item.op for item in graph.nodes] == ["Neg", "Neg"]
    assert not both.apply(graph)
    assert PassList([RenameOp("Neg", "Abs"), RenameOp("Sigmoid", "Abs")]).apply(graph)


def test_external_types_that_graphsurgeon_does_not_know_keep_their_bits():
    values = np.array([[-8, 7, 3]], np.int8)
    tensor = helper.make_tensor("w4", TensorProto.INT4, [1, 3], values.reshape(-1).tolist())
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w4", "s"], ["w"]),
            helper.make_node("Relu", ["x"], ["a"]),
            helper.make_node("Add", ["a", "w"], ["y"]),
        ],
        "g",
        infos({"x": [1, 3]}),
        infos({"y": [1, 3]}),
        [tensor, helper.make_tensor("s", TensorProto.FLOAT, [], [0.5])],
    )
    before = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    after = run(before, [Touch()])
    kept = next(item for item in after.graph.initializer if item.name == "w4")
    assert kept.data_type == TensorProto.INT4
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(kept).astype(np.int8), values)
