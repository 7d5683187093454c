"""Models that a user can't use: one sentence on standard error, the right exit code, and nothing written."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from cli import networks
from cli.commands import quantize
from cli.networks import build, node, save


def test_missing_model(refused, case, tmp_path, out):
    gone = tmp_path / "gone.onnx"
    others = [["inspect", gone], ["sensitivity", gone, "--random"], ["frontier", gone, case.table]]
    others += [["apply", gone, case.plan, "-o", out], ["verify", gone, case.model, "--data", case.data]]
    others += [["verify", case.model, gone, "--data", case.data]]
    for command in (quantize(gone, out, case.data), *others):
        refused(*command, names=gone)


@pytest.mark.parametrize("share", [0, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_truncated_model(refused, case, tmp_path, out, share):
    cut = tmp_path / "cut.onnx"
    content = case.model.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    refused(*quantize(cut, out, case.data), names=cut)
    refused("inspect", cut, names=cut)


@pytest.mark.parametrize("text", ["this is not a model\n", '{"a": 1}', "\n", "\x00\x01\x02"])
def test_text_for_a_model(refused, case, tmp_path, out, text):
    path = tmp_path / "text.onnx"
    path.write_text(text)
    refused(*quantize(path, out, case.data), names=path)


def test_a_folder_for_a_model(refused, case, tmp_path, out):
    refused(*quantize(tmp_path, out, case.data), names=tmp_path)


def test_empty_graph(refused, case, tmp_path, out):
    path = save(build([], {"x": [1]}, {}), tmp_path / "empty.onnx")
    refused(*quantize(path, out, case.data), names=[path, "empty"])


def test_invalid_graph(refused, case, tmp_path, out):
    nodes = [node("Gemm", "absent w", "y")]
    path = save(build(nodes, {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": networks.noise(0, 4, 4)}), tmp_path / "m.onnx")
    refused(*quantize(path, out, case.data), names=path)


def test_unknown_operator(amq, refused, tmp_path, out, read_json):
    nodes = [node("Gemm", "x w", "h"), helper.make_node("Swish9", ["h"], ["y"], name="activation_7", domain="com.acme")]
    model = build(nodes, {"x": ["n", 4]}, {"y": ["n", 64]}, {"w": networks.noise(0, 4, 64)})
    path = save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=networks.noise(1, 8, 4))
    for command in (quantize(path, out, tmp_path / "d.npz"), ["sensitivity", path, "--data", tmp_path / "d.npz"]):
        refused(*command, names=["Swish9", "com.acme", "activation_7"])
    summary = tmp_path / "i.json"
    ran = amq("inspect", path, "--json", summary)
    assert ran.code == 0, ran.err
    entry = {"operator": "Swish9", "domain": "com.acme", "opset": 1, "node": "activation_7"}
    assert read_json(summary)["unsupported_operators"] == [entry]
    assert "Swish9" in ran.out
    assert "activation_7" in ran.out


def test_no_quantizable_layer(refused, tmp_path, out):
    path = save(build([node("Relu", "x", "y")], {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=networks.noise(1, 8, 4))
    refused(*quantize(path, out, tmp_path / "d.npz"), names="no layer")
    refused("inspect", path, names="no layer")


def test_float64_weights(refused, tmp_path, out):
    kind = TensorProto.DOUBLE
    weight = networks.noise(0, 4, 64).astype(np.float64)
    model = build([node("Gemm", "x w", "y")], {"x": (kind, ["n", 4])}, {"y": (kind, ["n", 64])}, {"w": weight})
    path = save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=networks.noise(1, 8, 4).astype(np.float64))
    refused(*quantize(path, out, tmp_path / "d.npz"), names=["'w'", "float64", "float32"])


def test_bfloat16(refused, tmp_path, out):
    kind = TensorProto.BFLOAT16
    weight = helper.make_tensor("w", kind, [4, 64], networks.noise(0, 4, 64).ravel().tolist())
    nodes = [node("MatMul", "x w", "y")]
    values = [helper.make_tensor_value_info(name, kind, ["n", size]) for name, size in (("x", 4), ("y", 64))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    path = save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx"
    )
    refused("quantize", path, "-o", out, "--size", "0.5", "--random", names=["'x'", "bfloat16", "float32"])
    refused("inspect", path, names=["'x'", "bfloat16", "float32"])


def test_a_quantized_model(amq, refused, case, tmp_path, out):
    quantized = tmp_path / "q.onnx"
    assert amq("quantize", case.model, "-o", quantized, "--size", "0.5", "--from-sensitivity", case.table).code == 0
    refused(*quantize(quantized, out, case.data), names=["quantized already", "QuantizeLinear"])
    refused("inspect", quantized, names="quantized already")
    assert amq("verify", case.model, quantized, "--data", case.data).code == 0


def test_external_data_missing_or_outside(refused, case, tmp_path, out):
    folder = tmp_path / "model"
    folder.mkdir()
    path = folder / "m.onnx"
    onnx.save_model(networks.conv_net(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    (folder / "m.data").rename(tmp_path / "m.data")
    refused(*quantize(path, out, case.data), names="m.data")
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "../m.data"
    path.write_bytes(model.SerializeToString())
    refused(*quantize(path, out, case.data), names=["../m.data", "outside"])
