"""QuantizeLinear and DequantizeLinear: bit for bit onnxruntime's, and differentiated straight through."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from amq_onnx.errors import UnsupportedOperatorError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.executor.narrow import NARROW
from amq_onnx.executor.types import RANGES

from .graphs import model, onnxruntime_outputs

rng = np.random.default_rng(0)
KINDS = ["INT8", "UINT8", "INT16", "UINT16", "INT4", "UINT4", "INT2", "UINT2"]


def tensor(name, values, kind):
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    return numpy_helper.from_array(np.asarray(values).astype(dtype), name)


def inputs_near_the_halves(low, high, scale, shape):
    """Values all over the range and beyond it, many of them halfway between two codes."""
    codes = rng.integers(low - 5, high + 6, shape) + rng.choice([0.0, 0.25, 0.5], shape)
    return (codes * scale).astype(np.float32)


def fake_quantized(kind, x, scale, zero, **attributes):
    """x -> Q -> DQ as a model."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
        helper.make_node("Cast", ["q"], ["codes"], to=TensorProto.INT32),  # numpy has no 4- and 2-bit types
    ]
    return model(
        nodes,
        {"x": (TensorProto.FLOAT, list(x.shape))},
        {"y": TensorProto.FLOAT, "codes": TensorProto.INT32},
        {"s": scale, "z": tensor("z", zero, kind)},
        opset=25,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["tensor", "axis", "block"])
def test_bit_exact(kind, form):
    kind = getattr(TensorProto, kind)
    low, high = RANGES[kind]
    sizes, attributes = {
        "tensor": ((), {}), "axis": ((6,), {"axis": 1}), "block": ((4, 3), {"axis": 1, "block_size": 2})
    }[form]  # fmt: skip
    scale = np.asarray(rng.uniform(0.003, 0.2, sizes), np.float32)
    zero = rng.integers(low, high + 1, sizes)
    x = inputs_near_the_halves(low, high, float(scale.mean()), (4, 6) if form == "block" else (4, 6, 50))
    proto = fake_quantized(kind, x, scale, zero, **attributes)
    y, q = onnxruntime_outputs(proto, {"x": x})
    ours = Executor(proto).run({"x": torch.tensor(x)})
    np.testing.assert_array_equal(ours["codes"].numpy(), q)
    np.testing.assert_array_equal(ours["y"].numpy(), y)


def test_halfway_cases_need_a_division_in_float32():
    x = torch.randn(200_000)
    scale = np.float32(0.0371)
    proto = fake_quantized(TensorProto.INT8, x.numpy(), scale, 0)
    _, q = onnxruntime_outputs(proto, {"x": x.numpy()})
    np.testing.assert_array_equal(Executor(proto).run({"x": x})["codes"].numpy(), q)


def simulated(opset=13):
    """What this project's simulated graphs hold: 4-bit activations, 3-bit weights, an int32 bias."""
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("Clip", ["xq", "c0", "c15"], ["xc"]),
        helper.make_node("DequantizeLinear", ["xc", "sx", "zx"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "sw", "zw"], ["wq"], axis=0),
        helper.make_node("Clip", ["wq", "cm4", "c3"], ["wc"]),
        helper.make_node("DequantizeLinear", ["wc", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Mul", ["sx", "sw"], ["sb"]),
        helper.make_node("DequantizeLinear", ["b", "sb"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["y"], pads=[1, 1, 1, 1]),
    ]
    constants = {
        "w": weight,
        "b": rng.integers(-1000, 1000, 4).astype(np.int32),
        "sx": np.float32(0.11),
        "zx": np.uint8(7),
        "sw": (np.abs(weight).max((1, 2, 3)) / 3).astype(np.float32),
        "zw": np.zeros(4, np.int8),
        "c0": np.uint8(0),
        "c15": np.uint8(15),
        "cm4": np.int8(-4),
        "c3": np.int8(3),
    }
    inputs = {"x": (TensorProto.FLOAT, ["n", 3, 6, 6])}
    return model(
        nodes,
        inputs,
        {"y": TensorProto.FLOAT, "xd": TensorProto.FLOAT, "wd": TensorProto.FLOAT},
        constants,
        opset,
    )


def test_simulated_graph_is_onnxruntimes():
    proto = simulated()
    x = rng.standard_normal((2, 3, 6, 6)).astype(np.float32)
    y, xd, wd = onnxruntime_outputs(proto, {"x": x})
    ours = Executor(proto).run({"x": torch.tensor(x)})
    np.testing.assert_array_equal(ours["xd"].numpy(), xd)
    np.testing.assert_array_equal(ours["wd"].numpy(), wd)
    np.testing.assert_allclose(ours["y"].numpy(), y, rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_straight_through_estimator():
    executor = Executor(simulated())
    x = (4 * torch.randn(2, 3, 6, 6)).requires_grad_()
    scale = executor.initializers["sx"].clone().requires_grad_()
    y = executor.run({"x": x, "sx": scale}, ["xd"])["xd"]
    seed = torch.randn_like(y)
    gx, gs = torch.autograd.grad(y, [x, scale], seed)
    code = torch.round(x / scale) + 7
    inside = (code >= 0) & (code <= 15)
    torch.testing.assert_close(gx, seed * inside)
    steps = torch.where(inside, torch.round(x / scale) - x / scale, code.clamp(0, 15) - 7)
    torch.testing.assert_close(gs, (seed * steps).sum(), rtol=1e-4, atol=1e-4)


def test_gradients_reach_weights_and_their_scales():
    executor = Executor(simulated())
    w = executor.initializers["w"].clone().requires_grad_()
    scale = (executor.initializers["sw"] * 0.5).requires_grad_()
    y = executor.run({"w": w, "sw": scale}, ["wd"])["wd"]
    gw, gs = torch.autograd.grad(y.sum(), [w, scale])
    ratio = w / scale.reshape(-1, 1, 1, 1)
    code = torch.round(ratio)
    inside = (code >= -4) & (code <= 3)
    assert 0 < inside.float().mean() < 1
    torch.testing.assert_close(gw, inside.to(w.dtype))
    steps = torch.where(inside, code - ratio, code.clamp(-4, 3))
    torch.testing.assert_close(gs, steps.sum((1, 2, 3)), rtol=1e-4, atol=1e-4)


def test_the_executor_runs_without_the_graph_input_of_what_is_not_needed():
    assert set(Executor(simulated()).run({}, ["wd"])) == {"wd"}


def test_codes_pass_operators_that_only_move_values():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("MaxPool", ["q"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Transpose", ["p"], ["t"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("Cast", ["r"], ["wide"], to=TensorProto.INT32),
        helper.make_node("Concat", ["wide", "more"], ["c"], axis=1),
        helper.make_node("DequantizeLinear", ["c", "s"], ["y"]),
    ]
    constants = {
        "s": np.float32(0.1), "z": np.uint8(0), "shape": np.array([0, -1]), "more": np.ones((2, 3), np.int32)
    }  # fmt: skip
    proto = model(
        nodes,
        {"x": (TensorProto.FLOAT, [2, 3, 4, 4])},
        {"y": TensorProto.FLOAT, "c": TensorProto.INT32, "q": TensorProto.UINT8},
        constants,
    )
    x = np.abs(rng.standard_normal((2, 3, 4, 4))).astype(np.float32)
    y, c, q = onnxruntime_outputs(proto, {"x": x})
    leaf = torch.tensor(x, requires_grad=True)
    ours = Executor(proto).run({"x": leaf})
    assert (ours["c"].dtype, ours["q"].dtype) == (torch.int32, torch.uint8)
    np.testing.assert_array_equal(ours["y"].detach().numpy(), y)
    np.testing.assert_array_equal(ours["c"].numpy(), c)
    np.testing.assert_array_equal(ours["q"].numpy(), q)
    (gradient,) = torch.autograd.grad(ours["y"].sum(), leaf)
    np.testing.assert_allclose(gradient.sum().item(), 2 * 3 * 4, rtol=1e-5)


def test_codes_used_as_indices_are_integers():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("Cast", ["q"], ["i"], to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "i"], ["y"]),
        helper.make_node("Gather", ["i", "order"], ["reversed"]),
    ]
    constants = {"s": np.float32(1), "z": np.uint8(0), "table": np.arange(9, dtype=np.float32) ** 2}
    constants["order"] = np.array([2, 1, 0], np.int32)
    outputs = {"y": TensorProto.FLOAT, "reversed": TensorProto.INT32}
    executor = Executor(model(nodes, {"x": (TensorProto.FLOAT, [3])}, outputs, constants))
    results = executor.run({"x": torch.tensor([1.0, 4.2, 8.4])})
    assert results["y"].tolist() == [1, 16, 64] and results["reversed"].tolist() == [8, 4, 1]


def test_codes_become_integers_for_arithmetic():
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("BitShift", ["q", "two"], ["b"], direction="RIGHT"),
        helper.make_node("Cast", ["q"], ["narrow"], to=TensorProto.INT8),
    ]
    constants = {"s": np.float32(0.1), "z": np.uint8(0), "two": np.uint8(2)}
    outputs = {"b": TensorProto.UINT8, "narrow": TensorProto.INT8}
    proto = model(nodes, {"x": (TensorProto.FLOAT, [64])}, outputs, constants)
    x = np.linspace(-1, 30, 64).astype(np.float32)
    ours = Executor(proto).run({"x": torch.tensor(x)})
    for name, expected in zip(("b", "narrow"), onnxruntime_outputs(proto, {"x": x}), strict=True):
        np.testing.assert_array_equal(ours[name].numpy(), expected)


def packed(codes):
    """A weight of 4-bit codes, two in a byte, looked up in a table and dequantized."""
    bytes_ = ((codes[::2] + 8) + 16 * (codes[1::2] + 8)).astype(np.uint8)
    nodes = [
        helper.make_node("Cast", ["packed"], ["index"], to=TensorProto.INT32),
        helper.make_node("Range", ["zero", "count", "one"], ["all"]),
        helper.make_node("Mod", ["all", "sixteen"], ["low"]),
        helper.make_node("Div", ["all", "sixteen"], ["high"]),
        helper.make_node("Unsqueeze", ["low", "axis"], ["low2"]),
        helper.make_node("Unsqueeze", ["high", "axis"], ["high2"]),
        helper.make_node("Concat", ["low2", "high2"], ["pairs"], axis=1),
        helper.make_node("Sub", ["pairs", "eight"], ["signed"]),
        helper.make_node("Cast", ["signed"], ["table"], to=TensorProto.INT8),
        helper.make_node("Gather", ["table", "index"], ["unpacked"]),
        helper.make_node("Reshape", ["unpacked", "shape"], ["w"]),
        helper.make_node("DequantizeLinear", ["w", "s"], ["wd"], axis=0),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    numbers = {"zero": 0, "one": 1, "count": 256, "sixteen": 16, "eight": 8}
    constants = {name: np.int32(value) for name, value in numbers.items()} | {
        "packed": bytes_,
        "axis": np.array([1]),
        "shape": np.array([6, 4]),
        "s": rng.uniform(0.1, 0.2, 6).astype(np.float32),
    }
    return model(
        nodes,
        {"x": (TensorProto.FLOAT, ["n", 6])},
        {"y": TensorProto.FLOAT, "w": TensorProto.INT8},
        constants,
        13,
    )


def test_packed_weights_are_unpacked_once():
    codes = rng.integers(-8, 8, 24)
    proto = packed(codes)
    x = rng.standard_normal((3, 6)).astype(np.float32)
    executor = Executor(proto)
    ours = executor.run({"x": torch.tensor(x)})
    y, w = onnxruntime_outputs(proto, {"x": x})
    np.testing.assert_array_equal(w.reshape(-1), codes)
    np.testing.assert_array_equal(ours["w"].numpy(), w)
    assert ours["w"].dtype == torch.int8
    np.testing.assert_allclose(ours["y"].numpy(), y, rtol=1e-5, atol=1e-6)
    plan = executor._program.plan(("y",), frozenset({"x"}))
    assert [step.node.op_type for step in plan.steps] == ["DequantizeLinear", "MatMul"]
    other = executor.run({"x": torch.tensor(x), "packed": torch.full((12,), 0x88, dtype=torch.uint8)})
    assert not other["w"].any() and not other["y"].any()  # what is given counts, not what was folded


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT2", "UINT2", "INT8", "INT32"])
def test_integer_initializers_dequantize_exactly(kind):
    kind = getattr(TensorProto, kind)
    low, high = (-(2**31), 2**31 - 1) if kind == TensorProto.INT32 else RANGES[kind]
    values = tensor("q", rng.integers(low, high, (4, 8)), kind)
    nodes = [helper.make_node("DequantizeLinear", ["q", "s"], ["y"], axis=0)]
    scale = rng.uniform(0.1, 0.2, 4).astype(np.float32)
    proto = model(nodes, {}, {"y": TensorProto.FLOAT}, {"q": values, "s": scale}, 25)
    np.testing.assert_array_equal(Executor(proto).run({})["y"].numpy(), onnxruntime_outputs(proto, {})[0])


def test_quantization_under_torch_func():
    executor = Executor(simulated(), dtype=torch.float64)
    w = executor.initializers["w"]

    def total(value):
        return (executor.run({"w": value}, ["wd"])["wd"] ** 2).sum()

    hessian_times_ones = torch.func.jvp(torch.func.grad(total), (w,), (torch.ones_like(w),))[1]
    inside = torch.autograd.grad(executor.run({"w": (v := w.clone().requires_grad_())}, ["wd"])["wd"].sum(), v)[0]
    torch.testing.assert_close(hessian_times_ones, 2 * inside)
    many = torch.stack([w, w + 0.1])
    assert torch.func.vmap(torch.func.grad(total))(many).shape == many.shape


@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2"])
def test_float8_is_rounded_as_in_onnxruntime_and_differentiated_inside_its_range(kind):
    kind = getattr(TensorProto, kind)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        helper.make_node("Cast", ["x"], ["c"], to=kind),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
    ]
    constants = {"s": np.float32(0.25), "z": tensor("z", 0, kind)}
    outputs = {"y": TensorProto.FLOAT, "d": TensorProto.FLOAT}
    proto = model(nodes, {"x": (TensorProto.FLOAT, [64])}, outputs, constants, 23)
    x = np.append(np.geomspace(1e-4, 1e6, 60), [464 / 4, 464, 61440, -1e9]).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    ours = Executor(proto).run({"x": leaf})
    for name, expected in zip(outputs, onnxruntime_outputs(proto, {"x": x}), strict=True):
        np.testing.assert_array_equal(ours[name].detach().numpy(), expected)
    largest = {TensorProto.FLOAT8E4M3FN: 448, TensorProto.FLOAT8E5M2: 57344}[kind]
    (gradient,) = torch.autograd.grad(ours["y"].sum(), leaf)
    np.testing.assert_array_equal(gradient.numpy(), np.abs(x) <= largest / 4)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [(kind, {"saturate": saturate}) for kind in sorted(NARROW) for saturate in (0, 1)]
    + [(TensorProto.FLOAT8E8M0, {"round_mode": mode}) for mode in ("down", "nearest")],
)
def test_a_cast_rounds_to_the_values_of_a_narrow_type_as_the_reference_does(kind, attributes):
    nodes = [
        helper.make_node("Cast", ["x"], ["n"], to=kind, **attributes),
        helper.make_node("Cast", ["n"], ["y"], to=TensorProto.FLOAT),
    ]
    proto = model(nodes, {"x": (TensorProto.FLOAT, ["n"])}, {"y": TensorProto.FLOAT}, opset=24)
    edges = [
        57344,
        61439,
        61440,
        65519,
        448,
        463.9,
        464,
        464.1,
        240,
        247.9,
        248,
        6,
        7,
        1,
        1.5,
        1.49,
        0.25,
        0.75,
        5,
        3.5,
    ]
    x = np.float32([*edges, *np.geomspace(1e-3, 1e4, 40)])
    if kind != TensorProto.FLOAT8E8M0:
        x = np.concatenate([x, -x, np.float32([0, np.inf, -np.inf])])
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_array_equal(Executor(proto).run({"x": torch.tensor(x)})["y"].numpy(), expected)


def test_a_cast_to_strings_is_refused_in_one_sentence():
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.STRING)]
    proto = model(nodes, {"x": TensorProto.FLOAT}, {"y": TensorProto.STRING})
    with pytest.raises(UnsupportedOperatorError, match="STRING"):
        Executor(proto).run({"x": torch.ones(2)})
