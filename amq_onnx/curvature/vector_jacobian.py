"""Derivatives, and vectors pulled back, through an autograd graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def derivatives(total: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False) -> list[Tensor | None]:
    """The gradient of a scalar in each of `inputs`; None where it doesn't depend on it, as on nothing behind a Hardmax.

    The graph is kept. create_graph: for derivatives of what is returned.
    """
    if not total.requires_grad:
        return [None] * len(inputs)
    return list(
        torch.autograd.grad(total, list(inputs), retain_graph=True, create_graph=create_graph, allow_unused=True)
    )


def vector_jacobian(
    outputs: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """J'v for each of `inputs`, J the derivative of all `outputs` in it and v the vectors, each in its output's shape.

    None where no output depends on it. The graph is kept, for more vectors on the same forward pass.

    It is the gradient of the inner product v'y, which has the same values as pulling v back from y: `grad_outputs`
    would make torch import sympy, nearly a second of a command that takes five.
    """
    product = torch.stack([(output * vector).sum() for output, vector in zip(outputs, vectors, strict=True)]).sum()
    return derivatives(product, inputs)
