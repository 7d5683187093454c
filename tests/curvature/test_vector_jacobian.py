"""Vectors pulled back: what torch gives for them, without what torch imports for that."""

from __future__ import annotations

import subprocess
import sys

import torch

from amq_onnx.curvature.vector_jacobian import vector_jacobian


def test_it_is_what_torch_pulls_back_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    x, w, other = (torch.randn(3, 3, generator=generator, requires_grad=True) for _ in range(3))
    outputs = [torch.tanh(x @ w), (x * w).exp().sum(0)]
    vectors = [torch.randn(output.shape, generator=generator) for output in outputs]
    theirs = torch.autograd.grad(outputs, [x, w], grad_outputs=vectors, retain_graph=True)
    for _ in range(2):  # the graph is kept
        mine = vector_jacobian(outputs, vectors, [x, w, other])
        assert mine[2] is None
        for left, right in zip(mine[:2], theirs, strict=True):
            assert left is not None and torch.equal(left, right)


def test_infinite_outputs_do_not_spoil_it():
    x = torch.tensor([1.0, 200.0], requires_grad=True)
    (found,) = vector_jacobian([x.exp() * 1.0, x * 2], [torch.zeros(2), torch.ones(2)], [x])
    assert found is not None and found[0] == 2.0


def test_it_does_not_make_torch_import_sympy():
    program = (
        "import sys, torch\n"
        "from amq_onnx.curvature.vector_jacobian import vector_jacobian\n"
        "x = torch.ones(3, requires_grad=True)\n"
        "vector_jacobian([x.square()], [torch.ones(3)], [x])\n"
        "print('sympy' in sys.modules)\n"
    )
    found = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert found.stdout.strip() == "False"
