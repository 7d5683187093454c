"""Weights of every width: the same numbers, the exact size, and integer kernels after loading."""

import numpy as np
import onnx
import pytest
from small_graphs import assert_same_outputs, initializers, model, node, operators, outputs, session

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import run
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.pack import Pack
from amq_onnx.passes.strip import strip_exporter_metadata
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.targets.onnxruntime import OnnxRuntimeTarget

from .networks import BLOCK, CASES, STEM, packed_layer, with_int32_bias

LEVELS = ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"]
UNPACKING = {"Gather", "Cast", "Reshape", "Range", "Unsqueeze", "Div", "Mod", "Mul", "Sub", "Add", "Slice"}
KERNELS = {
    "Conv": {"QLinearConv"},
    "Gemm": {"QGemm"},
    "MatMul": {"QLinearMatMul", "MatMulIntegerToFloat"},
}


def case_id(case):
    return f"{case[0]} {'x'.join(map(str, case[1]))}"


def elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


@pytest.fixture
def optimized(tmp_path):
    def run_and_read(proto, level="ENABLE_EXTENDED"):
        path = tmp_path / "optimized.onnx"
        session(proto, level, optimized_file=path)
        return onnx.load(path)

    return run_and_read


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_packed_and_simulated_graphs_compute_the_same_bits(case, bits):
    simulated, packed, _, feeds = packed_layer(*case, bits)
    assert "w" not in initializers(packed)
    assert_same_outputs(simulated, packed, feeds)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_codes_take_exactly_their_width(case, bits):
    _, packed, recipe, _ = packed_layer(*case, bits)
    count = elements(case[1])
    kept = {tensor.name: tensor for tensor in packed.graph.initializer}
    codes = [
        c.name for c in recipe.constants if kept[c.name].data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    ]
    assert sum(len(kept[name].raw_data) for name in codes) == -(-count // BLOCK[bits]) * BLOCK[bits] * bits // 8


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_level_loads_and_unpacks_into_integer_kernels(case, bits, optimized):
    _, packed, _, feeds = packed_layer(*case, bits)
    packed = with_int32_bias(packed)
    (expected,) = outputs(packed, feeds)
    step = initializers(packed)[f"{STEM}a1s"]
    for level in LEVELS[1:]:
        (found,) = outputs(packed, feeds, level)
        assert abs(found - expected).max() <= 1.001 * step, level
    kinds = operators(optimized(packed))
    assert not UNPACKING & set(kinds)
    operator = case[0].split(",")[0]
    assert KERNELS[operator] & set(kinds), kinds
    assert operator not in kinds


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("bits", range(1, 9))
def test_other_operator_sets(opset, bits, optimized):
    simulated, packed, _, feeds = packed_layer("Conv", (5, 3, 3, 3), bits, opset)
    assert packed.opset_import[0].version == opset
    assert_same_outputs(simulated, packed, feeds)
    assert "QLinearConv" in operators(optimized(with_int32_bias(packed)))


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (1, 1), (300, 7), (17,)], ids=str)
def test_file_bytes_are_the_growth_of_the_file(bits, shape):
    target = OnnxRuntimeTarget(STEM)
    recipe = target.weight("w12", shape, bits)
    keys, waiting = {}, [recipe]
    while waiting:
        for key in waiting.pop().shared:
            if key not in keys:
                keys[key] = target.shared(key)
                waiting.append(keys[key])
    for item in (recipe, *keys.values()):
        before = model([node("Relu", "x", "y")], {"x": [1]}, {"y": [1]})
        after = onnx.ModelProto()
        after.CopyFrom(before)
        codes = _codes(shape, bits)
        for constant in item.constants:
            values = constant.values(codes).astype(constant.dtype).reshape(constant.shape)
            after.graph.initializer.append(onnx.numpy_helper.from_array(values, constant.name))
        for made in item.nodes:
            after.graph.node.append(onnx.helper.make_node(made.op_type, made.inputs, [made.output], **made.attributes))
        assert after.graph.ByteSize() - before.graph.ByteSize() == item.file_bytes()


def _codes(shape, bits):
    low = -(2 ** (bits - 1))
    return np.random.default_rng(0).integers(low, -low, shape, dtype=np.int32)


def three_convs(widths):
    """A chain of three equal Convs, packed at these widths."""
    rng = np.random.default_rng(3)
    constants = {f"w{n}": rng.standard_normal((3, 3, 3, 3)).astype(np.float32) for n in range(3)}
    nodes = [node("Conv", "x w0", "c0"), node("Conv", "c0 w1", "c1"), node("Conv", "c1 w2", "y")]
    proto = model(nodes, {"x": [1, 3, 9, 9]}, {"y": None}, constants)
    encodings = {
        name: weight_encodings(weight, 0, [bits]).encodings[bits]
        for (name, weight), bits in zip(constants.items(), widths, strict=True)
    }
    target = OnnxRuntimeTarget(STEM)
    recipes = {name: target.weight(name, (3, 3, 3, 3), encodings[name].bits) for name in constants}
    simulated = run(proto, [InsertQDQ(encodings, STEM)])
    return run(simulated, [Pack(recipes, target.shared)])


@pytest.mark.parametrize("bits", range(1, 9))
def test_weight_bytes_are_what_a_change_of_width_makes(bits):
    """With both widths in use elsewhere, so that all that is shared is there before and after."""
    target = OnnxRuntimeTarget(STEM)
    for other in range(1, 9):
        if other == bits:
            continue
        one, two = three_convs([bits, bits, other]), three_convs([bits, other, other])
        recipes = [target.weight("w1", (3, 3, 3, 3), width) for width in (bits, other)]
        costs = [target.weight_bytes("w1", recipe, (3,), conv=True) for recipe in recipes]
        assert one.graph.ByteSize() - two.graph.ByteSize() == costs[0] - costs[1]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zero", [0, 2])
def test_activation_bytes_are_what_an_encoding_makes(bits, zero):
    nodes = [node("Relu", "x", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]
    proto = model(nodes, {"x": [4]}, {"y": [4]})

    def size(encoding):
        plain, narrow = (Encoding(width, False, np.float32(0.1)) for width in (8, bits))
        quantizer = InsertQDQ({"x": narrow, "a": encoding, "b": plain}, STEM, {"x": "a0", "a": "a1", "b": "a2"})
        return strip_exporter_metadata(run(proto, [quantizer])).graph.ByteSize()

    encoding = Encoding(bits, False, np.float32(0.1), zero)
    growth = size(encoding) - size(Encoding(8, False, np.float32(0.1)))
    assert growth == OnnxRuntimeTarget(STEM).activation_bytes("a1", encoding)


class TestPack:
    def test_a_second_run_changes_nothing(self):
        _, packed, recipe, _ = packed_layer("Conv", (5, 3, 3, 3), 3)
        assert run(packed, [Pack({"w": recipe}, OnnxRuntimeTarget(STEM).shared)]) is packed

    def test_a_weight_that_is_not_quantized_is_named(self):
        proto = model([node("Conv", "x w", "y")], {"x": [1, 3, 4, 4]}, {"y": None}, {"w": _weights()})
        target = OnnxRuntimeTarget(STEM)
        with pytest.raises(ModelError, match="weight 'w' has no QuantizeLinear"):
            run(proto, [Pack({"w": target.weight("w0", (2, 3, 3, 3), 4)}, target.shared)])

    def test_weights_without_a_recipe_stay(self):
        proto = model([node("Conv", "x w", "y")], {"x": [1, 3, 4, 4]}, {"y": None}, {"w": _weights()})
        simulated = run(proto, [InsertQDQ({"w": Encoding(4, True, _scales(), axis=0)}, STEM)])
        assert run(simulated, [Pack({}, OnnxRuntimeTarget(STEM).shared)]) is simulated

    def test_tables_are_made_once_for_all_weights(self):
        one, three = three_convs([5, 8, 8]), three_convs([5, 5, 5])
        assert operators(one).count("Range") == operators(three).count("Range") == 2  # t5 and its spread table

    def test_a_weight_that_two_nodes_read_is_stored_once(self):
        nodes = [node("Conv", "x w", "a"), node("Conv", "x w", "b", strides=[1, 1]), node("Add", "a b", "y")]
        proto = model(nodes, {"x": [1, 3, 4, 4]}, {"y": None}, {"w": _weights()})
        simulated = run(proto, [InsertQDQ({"w": Encoding(3, True, _scales(), axis=0)}, STEM)])
        target = OnnxRuntimeTarget(STEM)
        packed = run(simulated, [Pack({"w": target.weight("w0", (2, 3, 3, 3), 3)}, target.shared)])
        assert [name for name in initializers(packed) if name.startswith(f"{STEM}w0")] == [
            name for name in dict.fromkeys(initializers(packed)) if name.startswith(f"{STEM}w0")
        ]
        assert operators(packed).count("DequantizeLinear") == 1
        assert_same_outputs(simulated, packed, {"x": _image()})


def _weights():
    return np.random.default_rng(1).standard_normal((2, 3, 3, 3)).astype(np.float32)


def _scales():
    return np.array([0.2, 0.3], np.float32)


def _image():
    return np.random.default_rng(2).standard_normal((1, 3, 4, 4)).astype(np.float32)
