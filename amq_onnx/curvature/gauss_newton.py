"""Traces of Gauss-Newton blocks, of every weight and activation from one backward pass a probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.vector_jacobian import vector_jacobian


def probe_gradients(
    scores: Sequence[Tensor],
    losses: Sequence[Loss],
    sites: Sequence[Tensor],
    generator: torch.Generator,
    weights: Tensor | None = None,
) -> list[Tensor]:
    """g = J' L v for each site, v random with unit covariance: E ||g||^2 is the trace of the site's Gauss-Newton block.

    The block of a site x, for the loss summed over the samples of the batch, is sum_n J_n' H_n J_n with J_n =
    d scores_n / d x and H_n = L_n L_n' the loss's Hessian in the scores of sample n. Proof: E g g' = J' L E[v v']
    L' J = J' H J, as v has unit covariance; the trace of an expectation is the expectation of the trace. Samples
    and outputs have independent signs, so that their cross terms vanish in the mean. For an activation the part
    of g that belongs to sample n has the trace of that sample's own block.

    scores: the graph's outputs that carry a loss, first dimension the samples. sites: tensors of the same
    autograd graph. The graph is kept, for more probes on the same forward pass. A site that no score depends
    on has zero gradient. weights: of the samples' losses, [samples]; 1 each without.
    """
    pulled = []
    with torch.no_grad():
        for score, loss in zip(scores, losses, strict=True):
            root = loss.root_draw(score, generator)
            if weights is not None:
                root *= weights.sqrt().to(root).reshape([-1, *[1] * (root.ndim - 1)][: root.ndim])
            pulled.append(root)
    gradients = vector_jacobian(scores, pulled, sites)
    return [
        torch.zeros_like(site) if gradient is None else gradient
        for site, gradient in zip(sites, gradients, strict=True)
    ]
