"""QuantizeLinear, Clip and DequantizeLinear in one step: what they do one by one."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from amq_onnx.executor.interpreter import Executor

from .graphs import model, onnxruntime_outputs

rng = np.random.default_rng(0)
FORMS = {
    "8 bits": (TensorProto.UINT8, 113, None, None),
    "4 bits": (TensorProto.UINT8, 6, 0, 15),
    "one bound": (TensorProto.INT8, 0, None, 3),
    "bounds twice": (TensorProto.INT8, -1, -4, 3),
}


def simulated(form, shape=(2, 3, 5, 4), readers=1, scales=("s", "s")):
    """x -> QuantizeLinear -> Clips -> DequantizeLinear -> y; readers: of the codes."""
    kind, zero, low, high = FORMS[form]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    constants = {"s": np.float32(0.37), "t": np.float32(0.37), "z": np.array(zero, dtype)}
    nodes = [helper.make_node("QuantizeLinear", ["x", scales[0], "z"], ["q"])]
    codes = "q"
    for number in range((low is not None or high is not None) + (form == "bounds twice")):
        bounds = [("low", low), ("high", high)]
        constants |= {name: np.array(bound, dtype) for name, bound in bounds if bound is not None}
        names = [name if bound is not None else "" for name, bound in bounds]
        nodes.append(helper.make_node("Clip", [codes, *names], [f"c{number}"]))
        codes = f"c{number}"
    for number in range(readers):
        nodes.append(helper.make_node("DequantizeLinear", [codes, scales[1], "z"], ["y" if not number else "y2"]))
    tensors = {name: numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()}
    return model(nodes, {"x": (TensorProto.FLOAT, list(shape))}, {"y": TensorProto.FLOAT}, tensors, 21), codes


def steps(executor, outputs, given):
    return [step.node.op_type for step in executor._program.plan(outputs, frozenset(given)).steps]


@pytest.mark.parametrize("form", FORMS)
def test_values_are_those_of_onnxruntime(form):
    proto, _ = simulated(form)
    x = (0.37 * (rng.integers(-150, 150, (2, 3, 5, 4)) + rng.choice([0, 0.25, 0.5], (2, 3, 5, 4)))).astype(np.float32)
    executor = Executor(proto)
    assert steps(executor, ("y",), {"x"}) == ["QuantizeLinear"]
    np.testing.assert_array_equal(
        executor.run({"x": torch.tensor(x)})["y"].numpy(), onnxruntime_outputs(proto, {"x": x})[0]
    )


@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_derivatives_are_those_of_the_nodes_one_by_one(form, pixels):
    proto, codes = simulated(form)
    executor = Executor(proto, dtype=torch.float64)
    x = torch.tensor(rng.normal(0, 1.5, (2, 3, 5, 4)))
    pulled = torch.tensor(rng.normal(0, 1, (2, 3, 5, 4)))
    if pixels:
        x, pulled = (each.movedim(1, -1).contiguous().movedim(-1, 1) for each in (x, pulled))

    def gradients(outputs):
        leaves = [x.clone().requires_grad_(), torch.tensor(0.37, dtype=torch.float64, requires_grad=True)]
        found = executor.run({"x": leaves[0], "s": leaves[1]}, outputs)["y"]
        return torch.autograd.grad((found * pulled).sum(), leaves)

    apart = ["y", codes]
    assert len(steps(executor, tuple(apart), {"x", "s"})) > 1
    for ours, theirs in zip(gradients(["y"]), gradients(apart), strict=True):
        torch.testing.assert_close(ours, theirs)

    def forward(x, scale):
        return executor.run({"x": x, "s": scale}, ["y"])["y"]

    def one_by_one(x, scale):
        return executor.run({"x": x, "s": scale}, apart)["y"]

    at = (x, torch.tensor(0.37, dtype=torch.float64))
    for tangents in ((pulled, torch.tensor(0.2, dtype=torch.float64)), (pulled, torch.zeros((), dtype=torch.float64))):
        for ours, theirs in zip(
            torch.func.jvp(forward, at, tangents), torch.func.jvp(one_by_one, at, tangents), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    many = torch.stack([x, -x])
    torch.testing.assert_close(
        torch.func.vmap(lambda each: forward(each, at[1]))(many), forward(many.flatten(0, 1), at[1]).reshape(many.shape)
    )


def test_codes_that_something_else_reads_stay_apart():
    for arguments in ({"readers": 2}, {"scales": ("s", "t")}):
        proto, _ = simulated("4 bits", **arguments)
        executor = Executor(proto)
        outputs = ("y", "y2") if "readers" in arguments else ("y",)
        assert "DequantizeLinear" in steps(executor, outputs, {"x"})
    executor = Executor(simulated("4 bits")[0])
    assert steps(executor, ("y", "q"), {"x"}) == ["QuantizeLinear", "Clip", "DequantizeLinear"]
    assert steps(executor, ("y",), {"q"}) == ["Clip", "DequantizeLinear"]
    codes = torch.tensor(rng.integers(0, 255, (2, 3, 5, 4)), dtype=torch.float32)
    expected = (codes.clamp(0, 15) - 6) * 0.37
    torch.testing.assert_close(executor.run({"q": codes}, ["y"])["y"], expected)


def test_scales_along_an_axis_can_be_given_in_place_of_one():
    executor = Executor(simulated("4 bits")[0])
    x, scales = torch.randn(2, 3, 5, 4), torch.tensor([0.1, 0.2, 0.4])
    found = executor.run({"x": x, "s": scales}, ["y"])["y"]
    for channel, scale in enumerate(scales):
        torch.testing.assert_close(found[:, channel], executor.run({"x": x, "s": scale}, ["y"])["y"][:, channel])


def test_scales_along_different_axes_stay_apart():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=1),
    ]
    scales = np.array([0.1, 0.2, 0.4], np.float32)
    proto = model(nodes, {"x": (TensorProto.FLOAT, [3, 3])}, {"y": TensorProto.FLOAT}, {"s": scales}, 21)
    x = rng.uniform(0, 9, (3, 3)).astype(np.float32)
    found = Executor(proto).run({"x": torch.tensor(x)})["y"]
    np.testing.assert_array_equal(found.numpy(), onnxruntime_outputs(proto, {"x": x})[0])
