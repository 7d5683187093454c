"""Branches that are added, as one convolution: operators afterwards, the same outputs in onnxruntime, what stays."""

import numpy as np
import pytest
from onnx.shape_inference import infer_shapes
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
from amq_onnx.passes.fold_affine import FoldAffine
from amq_onnx.passes.join_branches import JoinBranches
from amq_onnx.passes.norm_convolutions import NormsToConvolutions

FEEDS = {"x": f(2, 4, 9, 9)}
X = {"x": ["n", 4, 9, 9]}


def branches(*convs, more=(), outputs=("y",), **constants):
    """x -> a Conv for each (shape of its weight, attributes) -> their sum, one after another -> y."""
    nodes, total = [], ""
    for number, (shape, attributes) in enumerate(convs):
        constants |= {f"w{number}": f(*shape)} | ({f"b{number}": f(shape[0])} if number != 1 else {})
        read = f"x w{number}" + f" b{number}" * (number != 1)
        nodes.append(node("Conv", read, f"c{number}", **attributes))
        total = f"t{number}" if total else "c0"
        if number:
            nodes.append(node("Add", f"{'c0' if number == 1 else f't{number - 1}'} c{number}", total))
    return model([*nodes, node("Identity", total, "y"), *more], X, dict.fromkeys(outputs), constants)


THREE = ((6, 4, 3, 3), {"pads": [1, 1, 1, 1]})
ONE = ((6, 4, 1, 1), {})


class TestJoinBranches:
    @pytest.mark.parametrize(
        "convs",
        [
            [THREE, ONE],
            [ONE, THREE, ONE],
            [ONE, ONE],
            [((6, 4, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}), ((6, 4, 1, 1), {"strides": [2, 2]})],
            [((6, 2, 5, 3), {"pads": [2, 1, 2, 1], "group": 2}), ((6, 2, 3, 1), {"pads": [1, 0, 1, 0], "group": 2})],
            [((6, 4, 2, 2), {"pads": [0, 1, 1, 0]}), ONE],
        ],
        ids=["1 in 3", "three", "alike", "strides", "groups", "uneven pads"],
    )
    def test_they_become_one(self, convs):
        assert_rewrites(JoinBranches(), branches(*convs), ["Conv", "Identity"], FEEDS, tolerance=1e-6)

    @pytest.mark.parametrize(
        "other",
        [
            ((6, 4, 1, 1), {"strides": [2, 2], "pads": [4, 4, 5, 5]}),
            ((6, 2, 1, 1), {"group": 2}),
            ((6, 4, 5, 1), {"pads": [2, 0, 2, 0]}),
            ((6, 4, 3, 3), {"pads": [2, 2, 2, 2], "dilations": [2, 2]}),
            ((6, 4, 3, 3), {"auto_pad": "SAME_UPPER"}),
            ((6, 4, 1, 1), {"pads": [0, 0, 0, 0], "strides": [9, 9]}),
        ],
        ids=["strides", "groups", "growing", "dilations", "auto_pad", "broadcast"],
    )
    def test_others_stay(self, other):
        assert_left_alone(JoinBranches(), branches(THREE, other))

    @pytest.mark.parametrize("order", ["c x", "x c"])
    def test_a_depthwise_one_takes_its_input_too(self, order):
        nodes = [node("Conv", "x w b", "c", group=4, pads=[1, 1, 1, 1]), node("Add", order, "y")]
        before = model(nodes, X, {"y": None}, {"w": f(4, 1, 3, 3), "b": f(4)})
        assert_rewrites(JoinBranches(), before, ["Conv"], FEEDS, tolerance=1e-6)

    @pytest.mark.parametrize(
        ("shape", "attributes"),
        [
            ((4, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
            ((4, 1, 9, 9), {"group": 4}),
            ((4, 1, 1, 1), {"group": 4, "strides": [9, 9]}),
            ((4, 2, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
        ],
        ids=["dense", "broadcast", "strides", "groups"],
    )
    def test_others_don_t(self, shape, attributes):
        nodes = [node("Conv", "x w", "c", **attributes), node("Add", "x c", "y")]
        assert_left_alone(JoinBranches(), model(nodes, X, {"y": None}, {"w": f(*shape)}))

    def test_what_something_else_reads_stays(self):
        for read in ("c1", "c0"):
            before = branches(THREE, ONE, more=[node("Neg", read, "z")], outputs=("y", "z"))
            assert_left_alone(JoinBranches(), before)
        assert_left_alone(JoinBranches(), branches(THREE, ONE, outputs=("y", "c1")))

    def test_weights_of_two_readers_stay(self):
        nodes = [node("Conv", "x w", "c"), node("Conv", "x w", "d"), node("Add", "c d", "y")]
        assert_left_alone(JoinBranches(), model(nodes, X, {"y": None}, {"w": f(6, 4, 1, 1)}))

    def test_branches_of_other_tensors_stay(self):
        nodes = [node("Relu", "x", "r"), node("Conv", "x w", "c"), node("Conv", "r v", "d"), node("Add", "c d", "y")]
        assert_left_alone(JoinBranches(), model(nodes, X, {"y": None}, {"w": f(6, 4, 1, 1), "v": f(6, 4, 1, 1)}))


class TestNormsToConvolutions:
    def norm(self, *sizes, **attributes):
        channels = sizes[0]
        constants = {"s": f(channels), "b": f(channels), "m": f(channels), "v": np.abs(f(channels)) + 0.1}
        nodes = [node("Neg", "x", "r"), node("BatchNormalization", "r s b m v", "y", **attributes)]
        return infer_shapes(model(nodes, {"x": ["n", *sizes]}, {"y": None}, constants))

    @pytest.mark.parametrize("sizes", [(4, 9), (4, 9, 9), (3, 4, 5, 6)])
    def test_a_convolution_takes_its_place(self, sizes):
        before = self.norm(*sizes, epsilon=1e-3)
        after = assert_rewrites(NormsToConvolutions(), before, ["Neg", "Conv"], {"x": f(2, *sizes)}, tolerance=1e-6)
        assert initializers(after)["y_weight"].shape == (sizes[0], 1, *[1] * len(sizes[1:]))

    @pytest.mark.parametrize("between", [[node("Relu", "m", "a")], [node("Add", "m k2", "t"), node("Relu", "t", "a")]])
    def test_so_is_a_factor_for_each_channel_in_front_of_a_convolution(self, between):
        """With what FoldAffine then makes of a shift behind it."""
        nodes = [node("Neg", "x", "r"), node("Mul", "k r", "m"), *between, node("Conv", "a w", "y")]
        constants = {"k": f(3, 1, 1), "w": f(4, 3, 1, 1)} | ({"k2": f(1, 3, 1, 1)} if len(between) > 1 else {})
        before = infer_shapes(model(nodes, IMAGE, {"y": None}, constants))
        after = run(before, [NormsToConvolutions(), FoldAffine()])
        assert operators(after) == ["Neg", "Conv", "Relu", "Conv"]
        assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)}, 1e-6)

    @pytest.mark.parametrize(
        ("front", "factor", "reader"),
        [
            ([node("Transpose", "x", "r", perm=[0, 1, 3, 2])], f(3, 1, 1), node("Conv", "m w", "y")),
            ([node("Neg", "x", "r")], f(1), node("Conv", "m w", "y")),
            ([node("Neg", "x", "r")], f(3, 6, 1), node("Conv", "m w", "y")),
            ([node("Neg", "x", "r")], f(3, 1, 1), node("Add", "m r", "y")),
        ],
        ids=["of an input", "one number", "of each row", "no convolution"],
    )
    def test_other_factors_stay(self, front, factor, reader):
        constants = {"k": factor} | ({"w": f(4, 3, 1, 1)} if "w" in reader.input else {})
        before = infer_shapes(model([*front, node("Mul", "r k", "m"), reader], IMAGE, {"y": None}, constants))
        assert_left_alone(NormsToConvolutions(), before)

    def test_then_it_is_a_branch(self):
        nodes = [node("Relu", "x", "r"), node("BatchNormalization", "r s b m v", "n")]
        nodes += [node("Conv", "r w", "c", group=3, pads=[1, 1, 1, 1]), node("Add", "n c", "y")]
        constants = {"s": f(3), "b": f(3), "m": f(3), "v": np.abs(f(3)) + 0.1, "w": f(3, 1, 3, 3)}
        before = infer_shapes(model(nodes, IMAGE, {"y": None}, constants))
        after = run(before, [NormsToConvolutions(), JoinBranches()])
        assert operators(after) == ["Relu", "Conv"]

    def test_others_stay(self):
        assert_left_alone(NormsToConvolutions(), self.norm(6))
        constants = {name: np.abs(f(3)) for name in "sbmv"}
        image = model([node("BatchNormalization", "x s b m v", "y")], IMAGE, {"y": None}, constants)
        assert_left_alone(NormsToConvolutions(), image)
