"""Model files: what is read, what is refused, and that writing leaves a whole file or none."""

import random

import numpy as np
import onnx
import pytest
from onnx import external_data_helper
from small_graphs import f, initializers, model, node

from amq_onnx import skeleton
from amq_onnx.errors import ModelError, UsageError
from amq_onnx.model import file as model_file
from amq_onnx.model.file import (
    file_bytes,
    fingerprint,
    model_bytes,
    read_model,
    require_folder,
    whole_file,
    write_model,
    write_text,
    written_bytes,
)


def network():
    return model([node("MatMul", "x w", "y")], {"x": ["n", 64]}, {"y": None}, {"w": f(64, 32)})


def with_external_data(location):
    """The network with its weight in `location`, and the bytes that belong there."""
    proto = network()
    tensor = proto.graph.initializer[0]
    data = tensor.raw_data
    external_data_helper.set_external_data(tensor, location, 0, len(data))
    tensor.ClearField("raw_data")
    return proto, data


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "models"
    inner.mkdir()
    return inner


class TestRead:
    def test_a_model_comes_back_as_it_was(self, folder):
        proto = network()
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        read = read_model(folder / "m.onnx")
        assert (read.graph, read.opset_import[0].domain) == (proto.graph, "")

    def test_the_default_domain_by_its_other_name(self, folder):
        body = onnx.helper.make_graph(
            [node("Relu", "x", "b")], "b", [], [onnx.helper.make_empty_tensor_value_info("b")]
        )
        proto = model(
            [node("If", "c", "y", then_branch=body, else_branch=body)],
            {"c": (onnx.TensorProto.BOOL, []), "x": [2]},
            {"y": [2]},
        )
        other = onnx.ModelProto()
        other.CopyFrom(proto)
        other.opset_import[0].domain = other.graph.node[0].domain = "ai.onnx"
        other.graph.node[0].attribute[0].g.node[0].domain = "ai.onnx"
        (folder / "m.onnx").write_bytes(other.SerializeToString())
        read = read_model(folder / "m.onnx")
        assert (read.graph, read.opset_import[0].domain) == (proto.graph, "")

    def test_nodes_in_any_order_are_sorted(self, folder):
        """onnxruntime runs such files, and its own converter to float16 writes them."""
        inner = [node("Add", "b b", "c"), node("Neg", "c", "d")]
        value = onnx.helper.make_tensor_value_info("d", onnx.TensorProto.FLOAT, None)
        branches = {name: onnx.helper.make_graph(inner, name, [], [value]) for name in ("then_branch", "else_branch")}
        nodes = [
            node("Relu", "x", "a"),
            node("Relu", "a", "b"),
            onnx.helper.make_node("If", ["yes"], ["e"], **branches),
            node("Add", "a e", "y"),
        ]
        inputs = {"x": [4], "yes": (onnx.TensorProto.BOOL, [])}
        proto = model(nodes, inputs, {"y": [4]})
        for order in ([3, 2, 1, 0], [0, 2, 1, 3], [1, 0, 2, 3]):
            unsorted = onnx.ModelProto()
            unsorted.CopyFrom(proto)
            del unsorted.graph.node[:]
            unsorted.graph.node.extend(proto.graph.node[number] for number in order)
            for item in unsorted.graph.node:
                for attribute in item.attribute:
                    nodes = reversed([onnx.NodeProto.FromString(each.SerializeToString()) for each in attribute.g.node])
                    del attribute.g.node[:]
                    attribute.g.node.extend(nodes)
            (folder / "m.onnx").write_bytes(unsorted.SerializeToString())
            read = read_model(folder / "m.onnx")
        assert (read.graph, read.opset_import[0].domain) == (proto.graph, "")

    def test_a_cycle_is_refused(self, folder):
        proto = network()
        proto.graph.node[0].input[0] = "y"
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=r"m.onnx.*not a valid ONNX model"):
            read_model(folder / "m.onnx")

    def test_an_output_without_a_shape_gets_its_own(self, folder):
        """ONNX requires one, onnxruntime doesn't, and some converters leave it out."""
        proto = network()
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        read = read_model(folder / "m.onnx")
        sizes = [size.dim_param or size.dim_value for size in read.graph.output[0].type.tensor_type.shape.dim]
        assert sizes == ["n", 32]
        del read.graph.output[:], proto.graph.output[:]
        assert read == proto

    @pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9, 0.999])
    def test_a_truncated_file_is_refused(self, share, folder):
        data = network().SerializeToString()
        (folder / "m.onnx").write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ModelError, match=r"m\.onnx"):
            read_model(folder / "m.onnx")

    @pytest.mark.parametrize(
        "content",
        [b"hello, I am a text file\n", b"<html></html>", random.Random(0).randbytes(3000), b"\x00" * 100],
        ids=["text", "html", "noise", "zeros"],
    )
    def test_another_kind_of_file_is_refused(self, content, folder):
        (folder / "m.onnx").write_bytes(content)
        with pytest.raises(ModelError, match="is not an ONNX model"):
            read_model(folder / "m.onnx")

    def test_a_graph_without_nodes_is_refused(self, folder):
        proto = network()
        del proto.graph.node[:]
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="is empty"):
            read_model(folder / "m.onnx")

    def test_an_invalid_graph_is_refused_in_one_line(self, folder):
        proto = network()
        proto.graph.node[0].input[1] = "nowhere"
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match="not a valid ONNX model") as caught:
            read_model(folder / "m.onnx")
        assert "\n" not in str(caught.value)

    def test_a_missing_file_and_a_folder_are_refused(self, folder):
        for path in (folder / "none.onnx", folder):
            with pytest.raises(ModelError, match="no model file"):
                read_model(path)


class TestExternalData:
    @pytest.mark.parametrize("location", ["w.bin", "sub/w.bin"])
    def test_data_inside_the_folder_are_loaded_and_counted(self, location, folder):
        proto, data = with_external_data(location)
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        (folder / location).parent.mkdir(exist_ok=True)
        (folder / location).write_bytes(data)
        read = read_model(folder / "m.onnx")
        assert initializers(read)["w"].tobytes() == data
        assert file_bytes(folder / "m.onnx") == (folder / "m.onnx").stat().st_size + len(data)

    @pytest.mark.parametrize("kind", ["parent", "winding", "absolute", "link", "linked folder"])
    def test_data_outside_the_folder_are_refused(self, kind, folder, tmp_path):
        location = {
            "parent": "../w.bin",
            "winding": "sub/../../w.bin",
            "absolute": str(tmp_path / "w.bin"),
            "link": "link.bin",
            "linked folder": "away/w.bin",
        }[kind]
        proto, data = with_external_data(location)
        (tmp_path / "w.bin").write_bytes(data)
        (folder / "sub").mkdir()
        (folder / "link.bin").symlink_to(tmp_path / "w.bin")
        (folder / "away").symlink_to(tmp_path)
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        for reading in (read_model, file_bytes):
            with pytest.raises(ModelError, match=r"tensor 'w' .* outside the model's folder"):
                reading(folder / "m.onnx")

    def test_a_missing_data_file_is_named(self, folder):
        (folder / "m.onnx").write_bytes(with_external_data("w.bin")[0].SerializeToString())
        with pytest.raises(ModelError, match=r"w\.bin', which isn't there"):
            read_model(folder / "m.onnx")

    def test_a_data_file_that_is_too_short_is_refused(self, folder):
        proto, data = with_external_data("w.bin")
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
        (folder / "w.bin").write_bytes(data[:100])
        with pytest.raises(ModelError, match=r"m\.onnx"):
            read_model(folder / "m.onnx")


class TestWrite:
    def test_the_same_model_gives_the_same_bytes(self, folder):
        size = write_model(network_once := network(), folder / "a.onnx")
        write_model(onnx.load(folder / "a.onnx"), folder / "b.onnx")
        assert (folder / "a.onnx").read_bytes() == (folder / "b.onnx").read_bytes() == model_bytes(network_once)
        assert size == (folder / "a.onnx").stat().st_size == file_bytes(folder / "a.onnx")

    @pytest.mark.parametrize("before", [None, b"the old file"])
    def test_a_failure_leaves_what_was_there(self, before, folder):
        path = folder / "m.onnx"
        if before is not None:
            path.write_bytes(before)

        def fail():
            with whole_file(path) as temporary:
                temporary.write_bytes(b"half of it")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fail()
        assert [item.name for item in folder.iterdir()] == ([] if before is None else ["m.onnx"])
        assert before is None or path.read_bytes() == before

    def test_a_model_that_can_not_be_serialized_leaves_nothing(self, folder, monkeypatch):
        def fail(model):
            raise ValueError("too large")

        monkeypatch.setattr(model_file, "model_bytes", fail)
        with pytest.raises(ValueError, match="too large"):
            write_model(network(), folder / "m.onnx")
        assert list(folder.iterdir()) == []

    def test_permissions_are_those_of_any_new_file(self, folder):
        write_text(folder / "ours.json", "{}\n")
        (folder / "other.json").write_text("{}\n")
        assert (folder / "ours.json").stat().st_mode == (folder / "other.json").stat().st_mode
        assert (folder / "ours.json").read_text() == "{}\n"

    def test_large_models_keep_their_tensors_in_a_file_beside(self, folder, monkeypatch):
        monkeypatch.setattr(skeleton, "LARGEST_MESSAGE", 1000)
        proto = network()
        copy = proto.SerializeToString()
        size = write_model(proto, folder / "m.onnx")
        assert sorted(item.name for item in folder.iterdir()) == ["m.onnx", "m.onnx.data"]
        assert size == file_bytes(folder / "m.onnx") <= written_bytes(proto) < size + 300
        assert proto.SerializeToString() == copy
        np.testing.assert_array_equal(initializers(read_model(folder / "m.onnx"))["w"], initializers(proto)["w"])

    def test_folders_are_checked_before_the_work(self, folder):
        require_folder(folder / "new.onnx", "-o")
        with pytest.raises(UsageError, match="create"):
            require_folder(folder / "none" / "new.onnx", "-o")
        with pytest.raises(UsageError, match="is a folder"):
            require_folder(folder, "--report")


def test_the_fingerprint_follows_weights_and_nodes_and_nothing_else():
    proto = network()
    same = onnx.ModelProto()
    same.CopyFrom(proto)
    same.producer_name = "someone else"
    assert fingerprint(proto) == fingerprint(same)
    weight = onnx.ModelProto()
    weight.CopyFrom(proto)
    weight.graph.initializer[0].raw_data = weight.graph.initializer[0].raw_data[:-1] + b"\x01"
    other = onnx.ModelProto()
    other.CopyFrom(proto)
    other.graph.node[0].op_type = "Gemm"
    assert len({fingerprint(proto), fingerprint(weight), fingerprint(other)}) == 3
