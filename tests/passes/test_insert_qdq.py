"""QuantizeLinear and DequantizeLinear, inserted: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import numpy_helper
from small_graphs import (
    IMAGE,
    encoded,
    f,
    initializers,
    model,
    node,
    operators,
    outputs,
)

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import run
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.quantizer.affine import quantize, round_trip
from amq_onnx.quantizer.encoding import Encoding


class TestInsertQDQ:
    def small(self):
        nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("Neg", "r", "y")]
        return model(nodes, IMAGE, {"y": None}, {"w": f(4, 3, 3, 3)})

    def test_each_site_is_rounded_as_the_quantizer_rounds(self):
        before = self.small()
        weight = encoded(3, True, np.array([0.3, 0.2, 0.5, 0.4]), axis=0)
        data = encoded(5, scale=0.2, zero=15)
        after = run(before, [InsertQDQ({"w": weight, "x": data})])
        assert sorted(operators(after)) == sorted(
            ["QuantizeLinear", "Clip", "DequantizeLinear"] * 2 + ["Conv", "Relu", "Neg"]
        )
        rounded = onnx.ModelProto()
        rounded.CopyFrom(before)
        values = round_trip(initializers(before)["w"], weight)
        rounded.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
        image = f(2, 3, 6, 6)
        (ours,) = outputs(after, {"x": image})
        (theirs,) = outputs(rounded, {"x": round_trip(image, data)})
        np.testing.assert_array_equal(ours, theirs)
        assert run(after, [InsertQDQ({"w": weight, "x": data})]) is after

    def test_channels_of_several_widths_are_bounded_by_max_and_min(self):
        before = self.small()
        weight = Encoding(8, True, np.array([0.3, 0.2, 0.5, 0.01], np.float32), axis=0, widths=(3, 2, 5, 8))
        after = run(before, [InsertQDQ({"w": weight})])
        assert operators(after) == ["QuantizeLinear", "Max", "Min", "DequantizeLinear", "Conv", "Relu", "Neg"]
        made = {item.op_type: item for item in after.graph.node}
        for operator, ends in (("Max", [-4, -2, -16, -128]), ("Min", [3, 1, 15, 127])):
            bound = initializers(after)[made[operator].input[1]]
            np.testing.assert_array_equal(bound, np.array(ends, np.int8).reshape(4, 1, 1, 1))
        rounded = onnx.ModelProto()
        rounded.CopyFrom(before)
        values = round_trip(initializers(before)["w"], weight)
        rounded.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))
        image = f(2, 3, 6, 6)
        np.testing.assert_array_equal(outputs(after, {"x": image})[0], outputs(rounded, {"x": image})[0])
        assert run(after, [InsertQDQ({"w": weight})]) is after

    def test_eight_bits_need_no_clip_and_all_readers_read_the_same(self):
        nodes = [node("Relu", "x", "r"), node("Conv", "r w", "a"), node("Conv", "r v", "b"), node("Add", "a b", "y")]
        before = model(nodes, IMAGE, {"y": None}, {"w": f(4, 3, 3, 3), "v": f(4, 3, 3, 3)})
        after = run(before, [InsertQDQ({"r": encoded()})])
        assert operators(after).count("QuantizeLinear") == operators(after).count("DequantizeLinear") == 1
        assert "Clip" not in operators(after)
        read = {name for item in after.graph.node if item.op_type == "Conv" for name in item.input[:1]}
        assert len(read) == 1 and read != {"r"}

    def test_an_output_keeps_its_float_value(self):
        nodes = [node("Relu", "x", "r"), node("Conv", "r w", "y")]
        before = model(nodes, IMAGE, {"y": None, "r": None}, {"w": f(4, 3, 3, 3)})
        image = f(2, 3, 6, 6)
        after = run(before, [InsertQDQ({"r": encoded(scale=0.5)})])
        np.testing.assert_array_equal(outputs(after, {"x": image})[1], np.maximum(image, 0))
        assert np.abs(outputs(after, {"x": image})[0] - outputs(before, {"x": image})[0]).max() > 0.01

    def test_a_tensor_read_twice_by_one_node(self):
        before = model([node("Relu", "x", "r"), node("MatMul", "r r", "y")], {"x": [4, 4]}, {"y": None})
        values = f(4, 4)
        after = run(before, [InsertQDQ({"r": encoded()})])
        rounded = round_trip(np.maximum(values, 0), encoded())
        np.testing.assert_allclose(outputs(after, {"x": values})[0], rounded @ rounded, rtol=1e-6)

    def test_an_unknown_tensor_is_named(self):
        with pytest.raises(ModelError, match="'nowhere'"):
            run(self.small(), [InsertQDQ({"nowhere": encoded()})])


def test_quantize_codes_match_what_the_inserted_nodes_compute():
    """The codes of InsertQDQ's nodes at 2 bits, asked for as an output of the graph."""
    before = model([node("Relu", "x", "y")], {"x": [50]}, {"y": [50]})
    encoding = encoded(2, scale=0.7, zero=1)
    graph = gs.import_onnx(run(before, [InsertQDQ({"x": encoding})]))
    codes = next(item for item in graph.nodes if item.op == "Clip").outputs[0]
    graph.outputs = [codes]
    values = f(50) * 2
    (found,) = outputs(gs.export_onnx(graph.cleanup()), {"x": values})
    np.testing.assert_array_equal(found, quantize(values, encoding))
