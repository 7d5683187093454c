"""The standard target: ONNX's own integer types, in forms that onnxruntime loads at every level."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from small_graphs import assert_same_outputs, f, initializers, model, node, outputs

from amq_onnx.compiler import Compiler
from amq_onnx.errors import UsageError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.file import model_bytes
from amq_onnx.model.random_data import random_data
from amq_onnx.pipeline import quantize
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import lower, opset_of, prepare, simulate

from . import networks
from .networks import ranges

FAST = SensitivityOptions(relative_error=1.0, max_probes=2, samples=8)
INT2, INT4, INT8, INT16 = TensorProto.INT2, TensorProto.INT4, TensorProto.INT8, TensorProto.INT16
LEVELS = ("ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL")


def network():
    """The residual network, with a convolution that computes in float, since it makes an output."""
    return networks.network(also=[node("Conv", "t w4", "z")], outputs=("y", "z"), w4=f(2, 6, 1, 1))


def written(bits, activation_bits):
    proto, feeds = network()
    prepared = prepare(proto, target="standard")
    names = [site.name for site in prepared.sites.activations] if activation_bits else []
    ends = ranges(prepared.model, names, feeds)
    encodings = {name: activation_encoding(*ends[name], activation_bits) for name in names}
    for site in prepared.sites.weights:
        found = weight_encodings(prepared.weight(site.name), site.axis, [bits])
        encodings[site.name] = found.encodings[bits]
    prepared = prepared.for_encodings(encodings)
    simulated = simulate(prepared, encodings)
    return simulated, lower(prepared, simulated, encodings), feeds


def types(proto):
    """Element type of what each layer's weight is stored as."""
    producers = {name: item for item in proto.graph.node for name in item.output}
    stored = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    layers = [item for item in proto.graph.node if item.op_type in ("Conv", "Gemm")]
    return [stored[producers[item.input[1]].input[0]] for item in layers]


@pytest.mark.parametrize(
    ("bits", "activation_bits", "expected", "opset"),
    [
        (1, 8, [INT4, INT4, INT2, INT4], 25),
        (2, None, [INT2] * 4, 25),
        (2, 8, [INT4, INT4, INT2, INT4], 25),
        (3, 8, [INT4] * 4, 21),
        (4, 4, [INT4] * 4, 21),
        (5, 8, [INT8] * 4, 18),
        (8, 2, [INT8] * 4, 18),
        (9, 8, [INT16] * 4, 21),
        (16, None, [INT16] * 4, 21),
        (8, 16, [INT8] * 4, 21),
        (12, 16, [INT16] * 4, 21),
    ],
)
def test_containers_operator_sets_and_that_every_level_computes_the_same(bits, activation_bits, expected, opset):
    simulated, proto, feeds = written(bits, activation_bits)
    assert types(proto) == expected
    assert opset_of(proto) == opset
    layers = {item.op_type for item in network()[0].graph.node}
    assert {item.op_type for item in proto.graph.node} <= layers | {"QuantizeLinear", "DequantizeLinear", "Clip", "Mul"}
    for level in LEVELS:
        for ours, theirs in zip(outputs(proto, feeds, level), outputs(proto, feeds), strict=True):
            step = np.abs(theirs).max() / 2 ** min(activation_bits or 8, 8)
            assert np.abs(ours - theirs).max() <= 2.1 * step, level
    if bits <= 8 and activation_bits != 16:  # onnxruntime has no Clip of 16-bit codes, which the file needs none of
        for ours, theirs in zip(outputs(proto, feeds), outputs(simulated, feeds), strict=True):
            np.testing.assert_allclose(
                ours, theirs, rtol=0, atol=1.1 * np.abs(theirs).max() / 2 ** (activation_bits or 8)
            )


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_codes_are_those_of_the_encoding_and_packed(bits):
    simulated, proto, _ = written(bits, None)
    w1 = initializers(simulated)["w1"]
    producers = {name: item for item in proto.graph.node for name in item.output}
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    first = next(item for item in proto.graph.node if item.op_type == "Conv")
    dequantize = producers[first.input[1]]
    tensor = stored[dequantize.input[0]]
    scale = numpy_helper.to_array(stored[dequantize.input[1]])
    codes = numpy_helper.to_array(tensor).astype(np.float32)
    largest = 2 ** (bits - 1)
    expected = np.clip(np.rint(w1 / scale[:, None, None, None]), -largest, largest - 1)
    np.testing.assert_array_equal(codes, expected)
    assert len(tensor.raw_data) == -(-codes.size * bits // 8)


def test_predicted_bytes_are_the_files():
    proto, _ = network()
    prepared = prepare(proto, target="standard")
    data = random_data(proto, 8, 0)
    table = measure_sensitivity(prepared, data, range(1, 17), (8,), FAST)
    for widths in ((3, 4, 5, 8), (4, 12, 16)):
        compiler = Compiler(prepared, table, widths, (8,))
        for budget in range(compiler.least_bytes, compiler.least_bytes + 700, 100):
            found = compiler.best(budget)
            assert found.bytes == found.predicted_bytes == len(model_bytes(found.model)) <= budget


def test_an_embedding_is_not_moved_as_codes():
    nodes = [node("Gather", "table i", "e"), node("MatMul", "e w", "y")]
    proto = model(nodes, {"i": (TensorProto.INT64, ["n", 3])}, {"y": None}, {"table": f(9, 4), "w": f(4, 3)})
    prepared = prepare(proto, target="standard")
    encodings = {
        site.name: weight_encodings(prepared.weight(site.name), site.axis, [2]).encodings[2]
        for site in prepared.sites.weights
    }
    prepared = prepared.for_encodings(encodings)
    simulated = simulate(prepared, encodings)
    file = lower(prepared, simulated, encodings)
    kinds = sorted(item.op_type for item in file.graph.node)
    assert kinds == ["DequantizeLinear", "DequantizeLinear", "Gather", "MatMul"]
    assert_same_outputs(simulated, file, {"i": np.array([[0, 8, 3]])})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": (9,)}, "--bits: the target 'onnxruntime' can't write 9 bits"),
        (
            {"activation_bits": (12,), "target": "standard"},
            "--activation-bits: the target 'standard' can't write 12 bits",
        ),
        ({"target": "abacus"}, "target 'abacus' is unknown: use onnxruntime or standard"),
    ],
)
def test_widths_and_targets_that_can_not_be_written_are_refused_before_anything_runs(arguments, message, tmp_path):
    proto, _ = network()
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=message):
        quantize(tmp_path / "m.onnx", random_data(proto, 4, 0), size=0.5, **arguments)
