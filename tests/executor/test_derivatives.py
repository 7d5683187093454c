"""First and second derivatives, by torch.autograd and by torch.func."""

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from amq_onnx.executor import registry
from amq_onnx.executor.interpreter import Executor

from .cases import CASES, TESTED_ELSEWHERE, WITHOUT_DERIVATIVES
from .cases.drawing import Leaf
from .graphs import f, model, perceptron

node = helper.make_node
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_has_the_dtype_asked_for(dtype):
    nodes = [
        node("Cast", ["i"], ["c"], to=FLOAT),
        node("ConstantOfShape", ["s"], ["o"], value=helper.make_tensor("v", FLOAT, [1], [2.0])),
        node("Mul", ["c", "o"], ["p"]),
        node("Cast", ["p"], ["q"], to=TensorProto.FLOAT16),
        node("Range", ["zero", "limit", "step"], ["r"]),
        node("Add", ["q", "r"], ["y"]),
    ]
    numbers = {"zero": np.float16(0), "limit": np.float16(2), "step": np.float16(1), "s": np.array([2])}
    executor = Executor(model(nodes, {"i": (INT64, [2])}, {"y": TensorProto.FLOAT16}, numbers), dtype=dtype)
    result = executor.run({"i": torch.tensor([1, 2])})["y"]
    assert result.dtype == dtype and result.tolist() == [2, 5]


def test_grad_and_hessian_on_an_initializer():
    executor = Executor(perceptron(), dtype=torch.float64)
    x, w2 = torch.randn(5, 3, dtype=torch.float64), executor.initializers["w2"]

    def loss(w):
        return (executor.run({"x": x, "w2": w})["y"] ** 2).sum()

    a = executor.run({"x": x}, ["a"])["a"]
    torch.testing.assert_close(torch.func.grad(loss)(w2), 2 * a.T @ (a @ w2))
    exact = 2 * torch.einsum("ij,kl->ikjl", a.T @ a, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(torch.func.hessian(loss)(w2), exact)
    v = torch.randn_like(w2)
    product = torch.func.jvp(torch.func.grad(loss), (w2,), (v,))[1]
    torch.testing.assert_close(product, torch.einsum("ikjl,jl->ik", exact, v))
    many = torch.func.vmap(lambda w: executor.run({"x": x, "w2": w})["y"])(torch.stack([w2, 2 * w2]))
    torch.testing.assert_close(many[1], 2 * many[0])


def test_bounds_and_fillings_may_be_leaves():
    nodes = [node("Clip", ["x", "low", "high"], ["c"]), node("Pad", ["c", "pads", "fill"], ["y"])]
    constants = {
        "low": np.float32(-1),
        "high": np.float32(1),
        "pads": np.array([1, 1]),
        "fill": np.float32(0.5),
    }
    executor = Executor(model(nodes, {"x": (FLOAT, [3])}, {"y": FLOAT}, constants))
    floats = {n: v for n, v in executor.initializers.items() if v.is_floating_point()}
    x = torch.tensor([-2.0, 0.5, 3.0])
    gradients = torch.func.grad(lambda leaves: executor.run({"x": x, **leaves})["y"].sum())(floats)
    assert {name: value.item() for name, value in gradients.items()} == {"low": 1, "high": 1, "fill": 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("low", "high"), [(0.1, 6), (None, 6), (0, None)])
def test_the_derivative_of_clip_is_one_on_its_bounds_too(low, high, dtype):
    named = {name: np.float32(value) for name, value in (("low", low), ("high", high)) if value is not None}
    nodes = [node("Clip", ["x", "low" if "low" in named else "", "high" if "high" in named else ""], ["y"])]
    executor = Executor(model(nodes, {"x": (FLOAT, ["n"])}, {"y": FLOAT}, named), dtype=dtype)
    bounds = [float(value) for value in named.values()]
    x = torch.tensor([*bounds, *(bound - 1e-4 for bound in bounds), *(bound + 1e-4 for bound in bounds)], dtype=dtype)
    inside = ((x >= named.get("low", -np.inf)) & (x <= named.get("high", np.inf))).to(dtype)

    def run(values):
        return executor.run({"x": values})["y"]

    assert torch.equal(torch.func.grad(lambda values: run(values).sum())(x), inside)
    assert torch.equal(torch.func.jvp(run, (x,), (torch.ones_like(x),))[1], inside)
    each = torch.func.vmap(torch.func.grad(lambda values: run(values).sum()))(x[:, None])
    assert torch.equal(each[:, 0], inside)
    assert torch.equal(run(x), torch.clamp(x, *(named.get(name) for name in ("low", "high"))))


def along(function, leaves, direction, step=1e-5):
    """The derivative of `function` of all leaves along a direction, by central differences."""
    ahead, behind = (function(*(x + h * d for x, d in zip(leaves, direction, strict=True))) for h in (step, -step))
    return [(a - b) / (2 * step) for a, b in zip(ahead, behind, strict=True)]


def assert_near(ours, theirs):
    """Equal to the precision of central differences, relative to the largest value."""
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * (1 + float(b.abs().max())) if b.numel() else 0)


@pytest.mark.parametrize("op_type", CASES)
@settings(max_examples=20, derandomize=True, deadline=None, database=None, phases=[Phase.generate])
@given(data=st.data())
def test_gradients_and_hessian_vector_products(op_type, data):
    case = data.draw(CASES[op_type])
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    names = [f"x{i}" if value is not None else "" for i, value in enumerate(case.inputs)]
    inputs = {n: v for n, v in zip(names, case.inputs, strict=True) if isinstance(v, Leaf)}
    constants = {n: v for n, v in zip(names, case.inputs, strict=True) if n and n not in inputs}
    outputs = [f"y{i}" for i in range(case.outputs)]
    proto = model(
        [node(op_type, names, outputs, **case.attributes)],
        {name: (FLOAT, list(leaf.shape)) for name, leaf in inputs.items()},
        dict.fromkeys(outputs, 0),
        constants,
        case.opset,
    )
    executor = Executor(proto, dtype=torch.float64)
    leaves = tuple(torch.tensor(leaf.values(rng)) for leaf in inputs.values())
    before = [leaf.clone() for leaf in leaves]
    results = executor.run(dict(zip(inputs, leaves, strict=True)))
    weights = {n: torch.tensor(rng.standard_normal(y.shape)) for n, y in results.items() if y.is_floating_point()}

    def loss(*values):
        total = torch.zeros((), dtype=torch.float64)
        results = executor.run(dict(zip(inputs, values, strict=True)))
        for name, weight in weights.items():  # with a square, so that linear operators are differentiated twice too
            total = total + (results[name] * weight + results[name].square() / 4).sum()
        return total

    gradient = torch.func.grad(loss, argnums=tuple(range(len(leaves))))
    direction = [torch.tensor(rng.standard_normal(leaf.shape)) for leaf in leaves]
    gradients, transposed = torch.func.vjp(gradient, *leaves)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
    assert_near([slope], along(lambda *values: [loss(*values)], leaves, direction))
    assert_near(transposed(tuple(direction)), along(gradient, leaves, direction))
    assert all(map(torch.equal, leaves, before))


def test_every_operator_has_its_derivatives_tested_or_none():
    assert registry.names() == CASES.keys() | WITHOUT_DERIVATIVES | TESTED_ELSEWHERE
    assert len(registry.names()) == len(CASES) + len(WITHOUT_DERIVATIVES) + len(TESTED_ELSEWHERE)


def test_batch_normalization_has_derivatives_to_its_statistics_under_torch_func():
    nodes = [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"])]
    constants = {"s": f(3), "b": f(3), "m": f(3), "v": np.abs(f(3)) + 0.5}
    executor = Executor(model(nodes, {"x": (FLOAT, ["n", 3, 2])}, {"y": FLOAT}, constants), dtype=torch.float64)
    x = torch.randn(4, 3, 2, dtype=torch.float64)

    def loss(values):
        return (executor.run({"x": x, **values})["y"] ** 2).sum()

    leaves = dict(executor.initializers)
    gradients = torch.func.grad(loss)(leaves)
    step = {name: torch.randn_like(value) for name, value in leaves.items()}
    moved = [loss({n: v + h * step[n] for n, v in leaves.items()}) for h in (1e-6, -1e-6)]
    slope = sum((gradients[name] * step[name]).sum() for name in leaves)
    torch.testing.assert_close((moved[0] - moved[1]) / 2e-6, slope, rtol=1e-6, atol=1e-6)
    assert set(torch.func.hessian(loss)(leaves)) == {"s", "b", "m", "v"}


def test_batch_normalization_in_training_has_the_derivatives_of_the_batchs_own_statistics():
    attributes = {"training_mode": 1, "epsilon": 0.25}
    nodes = [node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "m2", "v2"], **attributes)]
    constants = {"s": f(3), "b": f(3), "m": f(3), "v": np.abs(f(3))}
    executor = Executor(model(nodes, {"x": (FLOAT, ["n", 3, 2])}, {"y": FLOAT}, constants), dtype=torch.float64)
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: executor.run({"x": value})["y"], x)


def test_nothing_is_modified_in_place():
    executor = Executor(perceptron("Relu"))
    x = torch.randn(5, 3)
    before = {name: value.clone() for name, value in executor.initializers.items()} | {"x": x.clone()}
    executor.run({"x": x})
    for name, value in before.items():
        assert torch.equal(x if name == "x" else executor.initializers[name], value)


def test_the_first_run_may_be_in_inference_mode():
    nodes = [
        node("Cast", ["codes"], ["f"], to=FLOAT),
        node("Mul", ["f", "s"], ["w"]),
        node("Mul", ["x", "w"], ["y"]),
    ]
    constants = {"codes": np.array([1, 2], np.int8), "s": np.float32(0.5)}
    executor = Executor(model(nodes, {"x": (FLOAT, [2])}, {"y": FLOAT}, constants))
    with torch.inference_mode():
        executor.run({"x": torch.ones(2)})
    s = torch.tensor(0.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(executor.run({"x": torch.ones(2), "s": s})["y"].sum(), s)
    assert gradient.item() == 3
