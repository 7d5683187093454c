"""What exporters write beside the graph: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import onnx
from onnx import TensorProto, helper
from small_graphs import (
    IMAGE,
    assert_same_outputs,
    f,
    infos,
    model,
    node,
)

from amq_onnx.passes.strip import strip_exporter_metadata


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
