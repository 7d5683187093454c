"""Traces of Hessian blocks by Hutchinson's estimator, one site at a time on a shared graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from amq_onnx.curvature.draws import rademacher_like
from amq_onnx.curvature.vector_jacobian import derivatives, vector_jacobian


def probe_products(loss: Tensor, sites: Sequence[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
    """v * (H v) for each site in turn, elementwise: its sum is an unbiased draw of the block's trace.

    H is the second derivative of `loss` in the site alone: E v'Hv = sum_ij H_ij E v_i v_j = sum_i H_ii, as v is
    Rademacher (Hutchinson 1990). One product of all sites at once would be unbiased as well, but the blocks off
    the diagonal would add their variance to every site's. The gradient is computed once and shared; each site
    costs a backward pass through the part of it that depends on the site.

    loss: a scalar, of a graph that can be differentiated twice; summed over samples, the part of v * (H v) that
    belongs to one sample's activations is a draw of that sample's own trace.
    """
    gradients = derivatives(loss, sites, create_graph=True)
    for site, gradient in zip(sites, gradients, strict=True):
        if gradient is None or not gradient.requires_grad:
            yield torch.zeros_like(site)
            continue
        vector = rademacher_like(site, generator)
        (product,) = vector_jacobian([gradient], [vector], [site])
        yield torch.zeros_like(site) if product is None else vector * product.detach()
