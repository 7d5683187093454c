"""First and second derivatives, by torch.autograd and by torch.func."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from amq_onnx.executor.interpreter import Executor

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


def test_bounds_stay_constants_when_all_floats_are_leaves():
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
    assert {name: value.item() for name, value in gradients.items()} == {"low": 1, "high": 1, "fill": 0}


SMOOTH = [
    ("Conv", [(2, 3, 5, 5), (4, 3, 3, 3), (4,)], {"pads": [1, 0, 1, 0]}),
    ("ConvTranspose", [(1, 2, 3, 3), (2, 2, 2, 2)], {"strides": [2, 2]}),
    ("Gemm", [(2, 3), (3, 2), (2,)], {"alpha": 0.5}),
    ("MaxPool", [(1, 2, 4, 4)], {"kernel_shape": [2, 2]}),
    ("MaxPool", [(1, 2, 5)], {"kernel_shape": [2], "pads": [1, 0]}),
    ("MaxPool", [(1, 1, 3, 3, 3)], {"kernel_shape": [2, 2, 2]}),
    ("AveragePool", [(1, 2, 4, 4)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [(1, 2, 5, 5)], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("BatchNormalization", [(2, 3, 2), (3,), (3,), (3,), (3,)], {}),
    ("InstanceNormalization", [(2, 3, 4), (3,), (3,)], {}),
    ("GroupNormalization", [(2, 4, 3), (4,), (4,)], {"num_groups": 2}),
    ("LayerNormalization", [(2, 5), (5,), (5,)], {}),
    ("RMSNormalization", [(2, 5), (5,)], {}),
    ("LRN", [(1, 5, 2)], {"size": 3}),
    ("Softmax", [(2, 4)], {}),
    ("LogSoftmax", [(2, 4)], {}),
    ("Gelu", [(6,)], {}),
    ("Gelu", [(6,)], {"approximate": "tanh"}),
    ("Elu", [(6,)], {}),
    ("Selu", [(6,)], {}),
    ("Celu", [(6,)], {}),
    ("Mish", [(6,)], {}),
    ("Swish", [(6,)], {}),
    ("Softplus", [(6,)], {}),
    ("HardSigmoid", [(6,)], {}),
    ("HardSwish", [(6,)], {}),
    ("LeakyRelu", [(6,)], {}),
    ("PRelu", [(2, 3), (3,)], {}),
    ("Erf", [(6,)], {}),
    ("Attention", [(1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)], {"is_causal": 1}),
    ("Attention", [(1, 4, 8), (1, 4, 4), (1, 4, 4)], {"q_num_heads": 4, "kv_num_heads": 2, "softcap": 2.0}),
    ("LSTM", [(3, 1, 2), (1, 8, 2), (1, 8, 2)], {"hidden_size": 2}),
    ("GRU", [(3, 1, 2), (1, 6, 2), (1, 6, 2)], {"hidden_size": 2}),
    ("ReduceL2", [(2, 3)], {}),
    ("ReduceMax", [(2, 3)], {}),
    ("ReduceLogSumExp", [(2, 3)], {}),
    ("ReduceProd", [(2, 3)], {}),
    ("Einsum", [(2, 3), (3, 2)], {"equation": "ij,jk->ki"}),
    ("DepthToSpace", [(1, 4, 2, 2)], {"blocksize": 2}),
]


@pytest.mark.parametrize(("op_type", "shapes", "attributes"), SMOOTH, ids=[c[0] + str(i) for i, c in enumerate(SMOOTH)])
def test_second_derivatives(op_type, shapes, attributes):
    names = [f"x{i}" for i in range(len(shapes))]
    inputs = {name: (FLOAT, list(shape)) for name, shape in zip(names, shapes, strict=True)}
    proto = model([node(op_type, names, ["y"], **attributes)], inputs, {"y": FLOAT}, opset=24)
    executor = Executor(proto, dtype=torch.float64)
    torch.manual_seed(0)
    leaves = [torch.randn(s, dtype=torch.float64).requires_grad_() for s in shapes]
    if op_type == "BatchNormalization":
        leaves[4] = (leaves[4].detach().abs() + 0.5).requires_grad_()

    def function(*values):
        return executor.run(dict(zip(names, values, strict=True)))["y"]

    torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


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
