"""Exported networks against onnxruntime and, for gradients, against the torch module they came from."""

from functools import cache

import pytest
import torch

from amq_onnx.executor.interpreter import Executor

from .graphs import onnxruntime_outputs, relative_error

pytest.importorskip("onnxscript")
from .exported import Residual, VisionTransformer, export


@cache
def exported(network, opset):
    torch.manual_seed(0)
    module = network().eval()
    return module, export(module, torch.randn(2, 3, 16, 16), opset)


@pytest.mark.parametrize(
    ("network", "opset"),
    [(VisionTransformer, 18), (VisionTransformer, 20), (VisionTransformer, 25), (Residual, 20)],
)
def test_exported_network(network, opset):
    module, proto = exported(network, opset)
    operators = {node.op_type for node in proto.graph.node}
    assert ("Attention" in operators) == (network is VisionTransformer and opset >= 23)
    executor = Executor(proto)
    (image,), (score,) = executor.inputs, executor.outputs
    x = torch.randn(5, 3, 16, 16)
    ours = executor.run({image: x})[score]
    assert relative_error(ours.detach().numpy(), onnxruntime_outputs(proto, {image: x.numpy()})[0]) < 1e-4

    parameters = {n: p for n, p in module.named_parameters() if n in executor.initializers and p.dim() != 1}
    assert len(parameters) >= 3
    leaves = {name: executor.initializers[name].clone().requires_grad_() for name in parameters}
    mine = torch.autograd.grad(executor.run({image: x, **leaves})[score].square().sum(), list(leaves.values()))
    theirs = torch.autograd.grad(module(x).square().sum(), list(parameters.values()))
    if network is Residual:  # the export folds BatchNormalization into the convolutions: only the head is the same
        mine, theirs = mine[-1:], theirs[-1:]
    for a, b in zip(mine, theirs, strict=True):
        assert relative_error(a.numpy(), b.numpy()) < 1e-4


def test_hessian_vector_product_through_attention():
    executor = Executor(exported(VisionTransformer, 25)[1], dtype=torch.float64)
    (image,), (score,) = executor.inputs, executor.outputs
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    name = next(name for name in executor.initializers if name.endswith("qkv.bias"))
    w = executor.initializers[name]

    def loss(value):
        return torch.logsumexp(executor.run({image: x, name: value})[score], 1).sum()

    v = torch.randn_like(w)
    product = torch.func.jvp(torch.func.grad(loss), (w,), (v,))[1]
    slope = (torch.func.grad(loss)(w + 1e-5 * v) - torch.func.grad(loss)(w - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(product, slope, rtol=1e-5, atol=1e-8)
