"""PRelu of one slope, and of codes: the graph afterwards, the same numbers in onnxruntime, what runs, what stays."""

import numpy as np
import onnx
import pytest
from small_graphs import (
    assert_left_alone,
    assert_rewrites,
    f,
    initializers,
    model,
    node,
    operators,
    operators_run,
    outputs,
)

from amq_onnx.model.random_data import random_data
from amq_onnx.passes.base import run
from amq_onnx.passes.prelu_codes import PReluOnCodes
from amq_onnx.passes.uniform_prelu import UniformPRelu
from amq_onnx.pipeline import quantize

IMAGE = {"x": ["n", 4, 6, 6]}
PARAMETERS = {"s": np.float32(0.05), "z": np.uint8(120), "t": np.float32(0.03), "o": np.uint8(40)}


def slopes(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1)


def between_codes(given, *behind, outputs=("y",), **more):
    """x -> Q(s, z) -> DQ -> PRelu -> Q(t, o) -> DQ -> y"""
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("PRelu", "d slopes", "p"),
        node("QuantizeLinear", "p t o", "r"),
        node("DequantizeLinear", "r t o", "y"),
        *behind,
    ]
    return model(nodes, IMAGE, dict.fromkeys(outputs), {**PARAMETERS, "slopes": given, **more})


class TestUniform:
    @pytest.mark.parametrize("given", [slopes(0.25, 0.25, 0.25, 0.25), slopes(1.5), np.float32(-0.3)], ids=str)
    def test_one_slope_is_a_leaky_relu(self, given):
        before = model([node("PRelu", "x slopes", "y")], IMAGE, {"y": None}, {"slopes": given})
        after = assert_rewrites(UniformPRelu(), before, ["LeakyRelu"], {"x": f(2, 4, 6, 6)}, 1e-7)
        assert not initializers(after)

    @pytest.mark.parametrize(
        ("given", "shape"),
        [(slopes(0.25, 0.25, 0.3, 0.25), IMAGE["x"]), (np.full((1, 1, 1, 6), 0.2, np.float32), ["n", 6])],
        ids=["several", "more dimensions"],
    )
    def test_others_stay(self, given, shape):
        assert_left_alone(
            UniformPRelu(), model([node("PRelu", "x slopes", "y")], {"x": shape}, {"y": None}, {"slopes": given})
        )


class TestOnCodes:
    @pytest.mark.parametrize(
        "given",
        [slopes(0.25, 0.1, 0.9, 1.0), slopes(0.25, -0.4, 0, 1.7), slopes(0, 0, 0, 0), slopes(1.1, 1.2, 2.0, 1.5)],
        ids=["up to 1", "of all kinds", "zeros", "above 1"],
    )
    def test_codes_are_off_by_one_at_most(self, given, tmp_path):
        before = between_codes(given)
        after = run(before, [PReluOnCodes()])
        feeds = {"x": 3 * f(2, 4, 6, 6)}
        (first,), (second,) = outputs(before, feeds), outputs(after, feeds, "ENABLE_ALL")
        apart = np.abs(np.rint((first - second) / PARAMETERS["t"]))
        assert apart.max() <= 1 and apart.mean() < 0.1
        found = operators_run(after, tmp_path)
        assert sorted(found) == [
            *("Clip", "Clip", "DequantizeLinear", "QLinearAdd", "QLinearMul", "QuantizeLinear"),
        ]
        assert run(after, [PReluOnCodes()]) is after

    def test_two_quantizers_of_one(self):
        behind = [node("QuantizeLinear", "p s z", "r2"), node("DequantizeLinear", "r2 s z", "y2")]
        before = between_codes(slopes(0.2, 0.3, 0.4, 0.5), *behind, outputs=("y", "y2"))
        after = run(before, [PReluOnCodes()])
        assert operators(after).count("Mul") == 2 and operators(after).count("Clip") == 2
        feeds = {"x": f(2, 4, 6, 6)}
        for first, second, step in zip(outputs(before, feeds), outputs(after, feeds), (0.03, 0.05), strict=True):
            assert np.abs(first - second).max() <= 1.01 * step

    @pytest.mark.parametrize(
        "before",
        [
            between_codes(slopes(0.2, 0.2, 0.2, 0.3), node("Abs", "p", "a"), outputs=("y", "a")),
            between_codes(slopes(0.2, 0.2, 0.2, 0.3), outputs=("y", "p")),
            model([node("PRelu", "x slopes", "y")], IMAGE, {"y": None}, {"slopes": slopes(0.2, 0.2, 0.2, 0.3)}),
        ],
        ids=["a float reader", "an output", "floats"],
    )
    def test_others_stay(self, before):
        assert_left_alone(PReluOnCodes(), before)


@pytest.mark.parametrize("given", [slopes(*np.linspace(0.1, 0.4, 16)), slopes(0.25)], ids=["sixteen", "one"])
def test_a_residual_network_runs_on_codes_alone(given, tmp_path):
    """As face recognition has it: what a PRelu makes is added to what layers make of it."""
    nodes = [
        node("Conv", "x w", "a", pads=[1] * 4),
        node("PRelu", "a slopes", "b"),
        node("Conv", "b v", "c", pads=[1] * 4),
        node("Add", "b c", "d"),
        node("PRelu", "d slopes", "e"),
        node("GlobalAveragePool", "e", "g"),
        node("Flatten", "g", "h"),
        node("Gemm", "h k", "y"),
    ]
    rng = np.random.default_rng(0)
    sizes = {"w": (16, 4, 3, 3), "v": (16, 16, 3, 3), "k": (16, 5)}
    weights = {name: (0.2 * rng.standard_normal(size)).astype(np.float32) for name, size in sizes.items()}
    proto = onnx.shape_inference.infer_shapes(model(nodes, IMAGE, {"y": ["n", 5]}, {**weights, "slopes": given}))
    path, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(proto, path)
    result = quantize(path, random_data(proto, 16, 0), size=0.9, bits=[8], output=out, tune="none", metric="cosine")
    assert result.verification.quantized_score > 0.998
    found = operators_run(onnx.load(out), tmp_path)
    assert not {"PRelu", "LeakyRelu", "Add", "GlobalAveragePool", "Conv"} & set(found)
    assert found.count("DequantizeLinear") <= 1
