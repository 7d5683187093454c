"""Normalizations, folded into layers: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import pytest
from small_graphs import (
    IMAGE,
    assert_left_alone,
    assert_rewrites,
    f,
    infos,
    initializers,
    model,
    node,
)

from amq_onnx.passes.fold_affine import FoldAffine, FoldAffineForward


class TestFoldAffine:
    def norm(self, channels):
        return {"scale": f(channels), "shift": f(channels), "mean": f(channels), "var": np.abs(f(channels)) + 0.1}

    def conv_norm(self, bias=True, weight=None, **attributes):
        weight = f(4, 3, 3, 3) if weight is None else weight
        constants = {"w": weight, **self.norm(weight.shape[0])} | ({"b": f(weight.shape[0])} if bias else {})
        nodes = [
            node("Conv", "x w b" if bias else "x w", "c", **attributes),
            node("BatchNormalization", "c scale shift mean var", "n", epsilon=1e-3),
            node("Relu", "n", "y"),
        ]
        return nodes, constants

    @pytest.mark.parametrize("bias", [True, False])
    @pytest.mark.parametrize("groups", [1, 3])
    def test_it_goes_into_the_convolution(self, bias, groups):
        nodes, constants = self.conv_norm(bias, f(6, 3 // groups, 3, 3), group=groups)
        after = assert_rewrites(
            FoldAffine(), model(nodes, IMAGE, {"y": None}, constants), ["Conv", "Relu"], tolerance=1e-6
        )
        assert initializers(after)["w"].dtype == np.float32
        assert len(after.graph.node[0].input) == 3

    def test_a_convolution_with_other_readers_stays(self):
        nodes, constants = self.conv_norm()
        nodes.append(node("Neg", "c", "z"))
        assert_left_alone(FoldAffine(), model(nodes, IMAGE, {"y": None, "z": None}, constants))

    def test_a_convolution_that_is_an_output_stays(self):
        nodes, constants = self.conv_norm()
        assert_left_alone(FoldAffine(), model(nodes, IMAGE, {"y": None, "c": None}, constants))

    @pytest.mark.parametrize("shared", ["x w b2", "x w2 b"])
    def test_a_weight_or_bias_with_other_readers_stays(self, shared):
        nodes, constants = self.conv_norm()
        constants |= {"w2": f(4, 3, 3, 3), "b2": f(4)}
        nodes.append(node("Conv", shared, "z"))
        assert_left_alone(FoldAffine(), model(nodes, IMAGE, {"y": None, "z": None}, constants))

    def test_a_weight_that_is_computed_stays(self):
        nodes, constants = self.conv_norm()
        del constants["w"]
        nodes.insert(0, node("Slice", "k zero two", "w"))
        constants |= {"zero": np.array([0]), "two": np.array([4])}
        before = model(nodes, {**IMAGE, "k": [5, 3, 3, 3]}, {"y": None}, constants)
        assert_left_alone(FoldAffine(), before)

    @pytest.mark.parametrize(
        "behind",
        [
            [node("Mul", "c one", "d")],
            [node("Div", "c channels", "d")],
            [node("Sub", "channels c", "d")],
            [node("Mul", "k c", "e"), node("Sub", "e channels", "g"), node("Add", "g one", "d")],
        ],
        ids=["one number", "one a channel", "from the left", "several"],
    )
    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
    def test_arithmetic_with_constants_goes_in_too(self, operator, groups, behind):
        shape = (4, 6 // groups, 3, 3) if operator == "Conv" else (6, 4 // groups, 3, 3)
        nodes = [node(operator, "x w", "c", group=groups), *behind, node("Relu", "d", "y")]
        constants = {"w": f(*shape), "one": f(1), "k": f(4, 1, 1), "channels": f(1, 4, 1, 1) + 3}
        used = {name for item in nodes for name in item.input}
        constants = {name: value for name, value in constants.items() if name in used}
        before = model(nodes, {"x": ["n", 6, 5, 5]}, {"y": None}, constants)
        assert_rewrites(FoldAffine(), before, [operator, "Relu"], {"x": f(2, 6, 5, 5)}, tolerance=1e-5)

    @pytest.mark.parametrize(
        ("behind", "constant"),
        [
            (node("Add", "c k", "y"), f(1, 1, 4, 4)),
            (node("Add", "c k", "y"), f(2, 1, 4, 1, 1)),
            (node("Div", "k c", "y"), f(1)),
            (node("Div", "c k", "y"), np.zeros(1, np.float32)),
            (node("Mul", "c c", "y"), None),
        ],
        ids=["one a pixel", "of higher rank", "divided by it", "by zero", "by itself"],
    )
    def test_other_arithmetic_stays(self, behind, constant):
        constants = {"w": f(4, 3, 3, 3)} | ({} if constant is None else {"k": constant})
        assert_left_alone(FoldAffine(), model([node("Conv", "x w", "c"), behind], IMAGE, {"y": None}, constants))

    def test_norms_with_one_set_of_parameters_are_folded_each(self):
        nodes = [
            node("Conv", "x w1", "c1"),
            node("BatchNormalization", "c1 scale shift mean var", "n1"),
            node("Conv", "n1 w2", "c2"),
            node("BatchNormalization", "c2 scale shift mean var", "y"),
        ]
        constants = {"w1": f(4, 3, 3, 3), "w2": f(4, 4, 3, 3), **self.norm(4)}
        assert_rewrites(FoldAffine(), model(nodes, IMAGE, {"y": None}, constants), ["Conv", "Conv"], tolerance=1e-6)


class TestFoldAffineForward:
    def behind_relu(self, steps, convs=("y",), weight=None, bias=True, **attributes):
        """x -> Relu -> r -> steps -> d -> a Conv for each output."""
        weight = f(4, 3, 3, 3) if weight is None else weight
        nodes = [node("Relu", "x", "r"), *steps]
        constants = {"k": np.float32(0.7), "c": np.float32([-0.4]), "several": f(3, 1, 1)}
        for output in convs:
            nodes.append(node("Conv", f"d w_{output}" + bias * f" b_{output}", output, **attributes))
            constants |= {f"w_{output}": weight.copy()} | ({f"b_{output}": f(len(weight))} if bias else {})
        return model(nodes, IMAGE, dict.fromkeys(convs), constants)

    @pytest.mark.parametrize(
        "steps",
        [
            [node("Mul", "r k", "e"), node("Add", "c e", "d")],
            [node("Sub", "r c", "e"), node("Div", "e k", "d")],
            [node("Add", "r c", "d")],
        ],
        ids=["factor, shift", "shift, factor", "shift"],
    )
    @pytest.mark.parametrize("groups", [1, 3])
    @pytest.mark.parametrize("bias", [True, False])
    def test_both_go_into_all_that_read_them(self, steps, groups, bias):
        before = self.behind_relu(steps, ("y", "z"), f(6, 3 // groups, 3, 3), bias, group=groups)
        assert_rewrites(FoldAffineForward(), before, ["Relu", "Conv", "Conv"], tolerance=1e-6)

    @pytest.mark.parametrize("padding", [{"pads": [0, 1, 0, 0]}, {"auto_pad": "SAME_UPPER"}])
    def test_in_front_of_padding_the_shift_stays(self, padding):
        before = self.behind_relu([node("Mul", "r k", "e"), node("Add", "e c", "d")], **padding)
        after = assert_rewrites(FoldAffineForward(), before, ["Relu", "Add", "Conv"], tolerance=1e-6)
        assert initializers(after)["d_shift"] == pytest.approx(-0.4 / 0.7)
        factor = self.behind_relu([node("Mul", "r k", "d")], **padding)
        assert_rewrites(FoldAffineForward(), factor, ["Relu", "Conv"], tolerance=1e-6)
        assert_left_alone(FoldAffineForward(), self.behind_relu([node("Add", "r c", "d")], **padding))

    @pytest.mark.parametrize("step", ["Sub c r", "Mul r c", "Mul r r", "Div c r", "Add r several"])
    def test_other_arithmetic_stays(self, step):
        operator, *read = step.split()
        assert_left_alone(FoldAffineForward(), self.behind_relu([node(operator, " ".join(read), "d")]))

    def test_what_something_else_reads_stays(self):
        before = self.behind_relu([node("Mul", "r k", "d"), node("Neg", "d", "z")])
        before.graph.output.extend(infos({"z": IMAGE["x"]}))
        assert_left_alone(FoldAffineForward(), before)
        before = self.behind_relu([node("Mul", "r k", "d")])
        before.graph.output.extend(infos({"d": IMAGE["x"]}))
        assert_left_alone(FoldAffineForward(), before)

    def test_a_weight_with_other_readers_stays(self):
        before = self.behind_relu([node("Mul", "r k", "d"), node("Conv", "r w_y", "z")])
        before.graph.output.extend(infos({"z": ["n", 4, 4, 4]}))
        assert_left_alone(FoldAffineForward(), before)
