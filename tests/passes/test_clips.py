"""Bounds of Relu and Clip: computed on codes, and moved behind a factor and a shift."""

import numpy as np
import pytest
from small_graphs import (
    IMAGE,
    assert_left_alone,
    assert_rewrites,
    assert_same_outputs,
    f,
    initializers,
    model,
    node,
    operators,
)

from amq_onnx.passes.base import run
from amq_onnx.passes.clips_behind_affine import ClipsBehindAffine
from amq_onnx.passes.clips_on_codes import ClipsOnCodes
from amq_onnx.passes.fold_affine import FoldAffine, FoldAffineForward

FEEDS = {"x": 4 * f(40, 50)}


QUANTIZED = [node("QuantizeLinear", "c scale zero", "q"), node("DequantizeLinear", "q scale zero", "y")]


class TestClipsOnCodes:
    def quantized(self, clip, zero=100, kind=np.uint8, narrow=None, scale=0.05, more=(), outputs=("y",), **constants):
        """x -> clip -> c, quantized; narrow: bounds of its codes."""
        nodes = [clip, node("QuantizeLinear", "c scale zero", "q")]
        constants = {"scale": np.float32(scale), "zero": np.asarray(zero, kind)} | constants
        if narrow is not None:
            nodes.append(node("Clip", "q least most", "n"))
            constants |= {"least": kind(narrow[0]), "most": kind(narrow[1])}
        nodes.append(node("DequantizeLinear", f"{'q' if narrow is None else 'n'} scale zero", "y"))
        return model([*nodes, *more], {"x": ["n", 50]}, dict.fromkeys(outputs), constants, opset=21)

    @pytest.mark.parametrize(
        ("clip", "ends", "expected"),
        [
            (node("Relu", "x", "c"), {}, (100, 255)),
            (node("Clip", "x a b", "c"), {"a": np.float32(-1.234), "b": np.float32(2.345)}, (75, 147)),
            (node("Clip", "x - b", "c"), {"b": np.float32(0.0)}, (0, 100)),
            (node("Clip", "x a", "c"), {"a": np.float32(0.525)}, (110, 255)),
        ],
        ids=["Relu", "between codes", "from above", "a tie"],
    )
    @pytest.mark.parametrize("narrow", [None, (90, 180)])
    def test_codes_have_the_bounds(self, clip, ends, expected, narrow):
        before = self.quantized(clip, narrow=narrow, **ends)
        after = assert_rewrites(ClipsOnCodes(), before, ["QuantizeLinear", "Clip", "DequantizeLinear"], FEEDS)
        low, high = narrow or (0, 255)
        clip = next(item for item in after.graph.node if item.op_type == "Clip")
        bounds = [initializers(after)[name] for name in clip.input[1:]]
        assert bounds == [max(expected[0], low), min(expected[1], high)]
        assert_left_alone(ClipsOnCodes(bounds=False), before)

    @pytest.mark.parametrize(
        ("clip", "zero", "narrow"),
        [
            (node("Relu", "x", "c"), 0, None),
            (node("Clip", "x a b", "c"), 20, None),
            (node("Clip", "x a b", "c"), 2, (0, 15)),
        ],
        ids=["Relu", "half a step beyond", "of 4 bits"],
    )
    @pytest.mark.parametrize("bounds", [True, False])
    def test_what_codes_imply_is_dropped(self, clip, zero, narrow, bounds):
        ends = {"a": np.float32(-1.02), "b": np.float32(11.74)}
        expected = ["QuantizeLinear", *["Clip"] * (narrow is not None), "DequantizeLinear"]
        before = self.quantized(clip, zero, narrow=narrow, **ends)
        assert_rewrites(ClipsOnCodes(bounds), before, expected, FEEDS)

    def test_codes_that_others_bound_too(self):
        """As those of a hard sigmoid, which have another scale and zero point behind their bounds."""
        more = [node("Clip", "q low high", "k"), node("DequantizeLinear", "k scale zero", "z")]
        ends = {"low": np.uint8(110), "high": np.uint8(130)}
        before = self.quantized(node("Relu", "x", "c"), more=more, outputs=("y", "z"), **ends)
        after = run(before, [ClipsOnCodes()])
        assert operators(after).count("Clip") == 2 and "Relu" not in operators(after)
        assert_same_outputs(after, before, FEEDS)

    @pytest.mark.parametrize(
        "options",
        [
            {"kind": np.uint16},
            {"scale": np.full(50, 0.05), "zero": np.full(50, 100)},
            {"more": [node("Neg", "c", "z")], "outputs": ("y", "z")},
            {"outputs": ("y", "c")},
        ],
        ids=["16 bits", "along an axis", "another reader", "an output"],
    )
    def test_others_stay(self, options):
        if "scale" in options:
            options = {**options, "scale": np.float32(options["scale"])}
        assert_left_alone(ClipsOnCodes(), self.quantized(node("Relu", "x", "c"), **options))

    def test_bounds_that_are_computed_stay(self):
        nodes = [node("ReduceMin", "x", "a", keepdims=0), node("Clip", "x a", "c"), *QUANTIZED]
        constants = {"scale": np.float32(0.05), "zero": np.uint8(100)}
        assert_left_alone(ClipsOnCodes(), model(nodes, {"x": ["n", 50]}, {"y": None}, constants))


class TestClipsBehindAffine:
    def behind_conv(self, clip, *steps, pads=1, outputs=("y",), more=(), operator="Conv"):
        """x -> Conv -> r -> clip -> c -> steps -> d -> a padded Conv."""
        nodes = [node(operator, "x w", "r"), clip, *steps, node("Conv", "d v", "y", pads=[pads] * 4), *more]
        constants = {"w": f(3, 3, 3, 3), "v": f(2, 3, 3, 3)}
        constants |= {"a": np.float32(-0.3), "b": np.float32(1.1), "k": np.float32(0.7), "s": np.float32([-0.4])}
        return model(nodes, IMAGE, dict.fromkeys(outputs), constants)

    FACTOR_AND_SHIFT = (node("Mul", "c k", "m"), node("Add", "s m", "d"))

    @pytest.mark.parametrize(
        ("clip", "steps", "expected"),
        [
            (node("Relu", "r", "c"), FACTOR_AND_SHIFT, ["Conv", "Clip", "Conv"]),
            (node("Relu", "r", "c"), (node("Div", "c k", "d"),), ["Conv", "Relu", "Conv"]),
            (node("Clip", "r a b", "c"), FACTOR_AND_SHIFT, ["Conv", "Clip", "Conv"]),
            (node("Clip", "r - b", "c"), FACTOR_AND_SHIFT[::-1], ["Conv", "Clip", "Conv"]),
            (node("Clip", "r a", "c"), (node("Sub", "c s", "d"),), ["Conv", "Clip", "Conv"]),
        ],
        ids=["Relu", "Relu and a factor", "both bounds", "the upper one", "the lower one"],
    )
    @pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
    def test_the_convolution_in_front_takes_them(self, clip, steps, expected, operator):
        if steps == self.FACTOR_AND_SHIFT[::-1]:
            steps = (node("Add", "c s", "m"), node("Mul", "m k", "d"))
        before = self.behind_conv(clip, *steps, operator=operator)
        after = run(before, [ClipsBehindAffine(), FoldAffine()])
        assert operators(after) == [operator, *expected[1:]]
        assert_same_outputs(after, before, {"x": f(2, 3, 6, 6)}, tolerance=1e-6)
        assert run(after, [ClipsBehindAffine(), FoldAffine()]) is after

    def test_what_the_convolution_behind_takes_stays(self):
        before = self.behind_conv(node("Relu", "r", "c"), *self.FACTOR_AND_SHIFT, pads=0)
        assert_left_alone(ClipsBehindAffine(), before)
        assert operators(run(before, [FoldAffineForward()])) == ["Conv", "Relu", "Conv"]

    @pytest.mark.parametrize("read", ["r", "c"])
    def test_what_something_else_reads_stays(self, read):
        more = [node("Neg", read, "z")]
        before = self.behind_conv(node("Relu", "r", "c"), *self.FACTOR_AND_SHIFT, more=more, outputs=("y", "z"))
        assert_left_alone(ClipsBehindAffine(), before)

    def test_half_of_it(self):
        """Something else reads what the factor makes."""
        more = [node("Neg", "m", "z")]
        before = self.behind_conv(node("Relu", "r", "c"), *self.FACTOR_AND_SHIFT, more=more, outputs=("y", "z"))
        after = run(before, [ClipsBehindAffine(), FoldAffine()])
        assert sorted(operators(after)) == ["Add", "Conv", "Conv", "Neg", "Relu"]
        assert_same_outputs(after, before, {"x": f(2, 3, 6, 6)}, tolerance=1e-6)

    def test_other_arithmetic_stays(self):
        for step in (
            node("Sub", "s c", "d"),
            node("Mul", "c a", "d"),
            node("Mul", "c c", "d"),
            node("Div", "k c", "d"),
        ):
            assert_left_alone(ClipsBehindAffine(), self.behind_conv(node("Relu", "r", "c"), step))
