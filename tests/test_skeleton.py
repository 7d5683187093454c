"""Models whose tensors are too large for one protobuf message."""

import numpy as np
import onnx
import pytest
from cli.networks import conv_net, images
from onnx import TensorProto, helper, numpy_helper, version_converter
from quantized_files import FAST, quantized
from small_graphs import f, initializers, model, node

from amq_onnx import skeleton
from amq_onnx.errors import ModelError
from amq_onnx.functions import inlined
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import file_bytes, read_model, write_model
from amq_onnx.model.inputs import input_specs
from amq_onnx.model.sites import find_sites
from amq_onnx.passes.base import check
from amq_onnx.pipeline import quantize
from amq_onnx.skeleton import fits_one_message, large_tensors, on_skeleton


def network(opset=18):
    """Two tensors that a skeleton leaves out, around one that it keeps."""
    constants = {"w": f(8, 3, 8, 8), "b": f(8), "v": f(8, 8, 8, 8)}
    nodes = [node("Conv", "x w b", "c", kernel_shape=[8, 8]), node("Relu", "c", "r"), node("Conv", "r v", "y")]
    return model(nodes, {"x": ["n", 3, 20, 20]}, {"y": None}, constants, opset)


def declared(opset):
    """Weights among the inputs as well, as formats before 4 had them."""
    found = network(opset)
    for tensor in found.graph.initializer:
        found.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return found


class TestSkeleton:
    @pytest.mark.parametrize("made", [network, declared])
    def test_what_is_left_out_comes_back_in_its_place(self, made):
        whole = made(18)
        seen = []

        def rewrite(light):
            seen.append(light)
            return light

        assert on_skeleton(whole, rewrite) == whole
        assert [tensor.name for tensor in seen[0].graph.initializer] == ["b"]
        assert {"w", "v"} <= {value.name for value in seen[0].graph.input}
        assert [tensor.name for tensor in large_tensors(whole)] == ["w", "v"]

    @pytest.mark.parametrize("made", [network, declared])
    def test_onnx_makes_the_same_of_it(self, made):
        whole = made(11)
        whole.metadata_props.add(key="owner", value="me")
        inferred = on_skeleton(whole, onnx.shape_inference.infer_shapes)
        assert inferred == onnx.shape_inference.infer_shapes(whole)
        converted = on_skeleton(whole, lambda light: version_converter.convert_version(light, 18))
        direct = version_converter.convert_version(whole, 18)
        assert list(converted.graph.node) == list(direct.graph.node)
        assert list(converted.graph.initializer) == list(direct.graph.initializer)
        assert list(converted.graph.input) == list(direct.graph.input)

    def test_functions_are_inlined_around_large_tensors(self):
        call = node("Scaled", "x w", "y", domain="mine")
        function = helper.make_function(
            "mine", "Scaled", ["a", "b"], ["c"], [node("MatMul", "a b", "c")], [helper.make_opsetid("", 18)]
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("mine", 1)]
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
                  (("x", ["n", 40]), ("y", ["n", 40]))]  # fmt: skip
        graph = helper.make_graph([call], "g", values[:1], values[1:], [numpy_helper.from_array(f(40, 40), "w")])
        found = inlined(helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8))
        assert [item.op_type for item in found.graph.node] == ["MatMul"]
        assert found.graph.initializer == graph.initializer and list(found.graph.input) == values[:1]


class TestLargeModels:
    """What protobuf's limit is lowered for."""

    def test_a_model_is_quantized_as_any_other(self, tmp_path, monkeypatch):
        data = Dataset(lambda: [{"image": images(64)}], input_specs(conv_net(opset=11)), "the data")
        (tmp_path / "plain").mkdir()
        plain = quantized(conv_net(opset=11), data, tmp_path / "plain")
        monkeypatch.setattr(skeleton, "LARGEST_MESSAGE", 3000)
        write_model(conv_net(opset=11), tmp_path / "m.onnx")
        assert sorted(item.name for item in tmp_path.glob("m.*")) == ["m.onnx", "m.onnx.data"]
        found = quantize(tmp_path / "m.onnx", data, size=0.5, output=tmp_path / "o.onnx", options=FAST, tune="none")
        assert found.plan.weights == plain.plan.weights
        assert found.verification.quantized_score == plain.verification.quantized_score
        assert file_bytes(tmp_path / "o.onnx") <= found.bytes <= found.budget
        written, known = read_model(tmp_path / "o.onnx"), read_model(tmp_path / "plain" / "o.onnx")
        assert list(written.graph.node) == list(known.graph.node)
        for name, values in initializers(known).items():
            np.testing.assert_array_equal(initializers(written)[name], values)

    def test_a_tensor_that_is_cut_short_is_refused(self, monkeypatch):
        found = network()
        monkeypatch.setattr(skeleton, "LARGEST_MESSAGE", 3000)
        check(found, "here")
        found.graph.initializer[0].raw_data = found.graph.initializer[0].raw_data[:-4]
        with pytest.raises(ModelError, match="not valid ONNX here"):
            check(found, "here")

    def test_so_is_a_graph_that_is_not_valid(self, monkeypatch):
        found = network()
        monkeypatch.setattr(skeleton, "LARGEST_MESSAGE", 3000)
        found.graph.node[1].op_type = "Unheard"
        with pytest.raises(ModelError, match="not valid ONNX here"):
            check(found, "here")

    def test_more_than_2_gib(self, tmp_path):
        """What protobuf really does, on a file with a hole of zeros."""
        tables = [
            TensorProto(name=f"table{number}", data_type=TensorProto.FLOAT, dims=[17_000, 1 << 14]) for number in (0, 1)
        ]
        for table in tables:
            table.data_location = TensorProto.EXTERNAL
            table.external_data.add(key="location", value="m.data")
        with (tmp_path / "m.data").open("wb") as stream:
            stream.truncate(4 * 17_000 << 14)
        nodes = [
            node("Gather", "table0 i", "rows0", axis=1),
            node("Gather", "table1 i", "rows1", axis=1),
            node("Add", "rows0 rows1", "rows"),
            node("MatMul", "rows w", "y"),
        ]
        given = [helper.make_tensor_value_info("i", TensorProto.INT64, ["n"])]
        made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [17_000, 4])]
        weight = numpy_helper.from_array(np.ones((64, 4), np.float32), "w")
        graph = helper.make_graph(nodes, "g", given, made, [*tables, weight])
        whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
        (tmp_path / "m.onnx").write_bytes(whole.SerializeToString())
        read = read_model(tmp_path / "m.onnx")
        assert not fits_one_message(read)
        converted = on_skeleton(read, lambda light: version_converter.convert_version(light, 18))
        del read
        assert [site.name for site in find_sites(converted).weights] == ["w"]
        written = write_model(converted, tmp_path / "out.onnx")
        assert written == file_bytes(tmp_path / "out.onnx") > 1 << 31
