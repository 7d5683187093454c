"""What a known perturbation adds to the loss, to second order, from the gradients of Gauss-Newton probes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from amq_onnx.curvature.sample_axis import SampleAxis
from amq_onnx.layout import ordered_alike


def quadratic_draws(slopes: Tensor) -> Tensor:
    """Draws of 1/2 d' J' H J d, from the products g . d that `sample_slopes` makes.

    d is the perturbation of one or several tensors together, J the scores' derivative in them, H the loss's Hessian
    in the scores: the expected rise of a loss at its minimum, and of the Kullback-Leibler divergence from the
    unperturbed scores, to second order. With g = J' L v of `probe_gradients`, E (g . d)^2 = d' J' L E[v v'] L' J d =
    d' J' H J d. Nothing is assumed of d: where its direction is one that the loss doesn't feel, the form says so, which
    the mean trace times ||d||^2 (HAWQ-V2) can't. The signs of the samples are independent, so that products between
    samples vanish in the mean of (sum over samples)^2 as well: the product of a whole batch gives the draw of its sum.
    A draw's standard deviation is 2^(1/2) of its mean where v is normal, and none where only two classes compete (see
    SoftmaxLoss.root_draw).
    """
    return slopes.square().div_(2)


def sample_slopes(
    gradients: Sequence[Tensor], perturbations: Sequence[Tensor], axes: Sequence[SampleAxis | None], samples: int
) -> Tensor:
    """Products g . d of gradients and perturbations of one or several tensors together, by sample, float64 [samples].

    Their sum alone, [1], where an axis is None. gradients, perturbations: of each tensor, in its shape. axes: where
    each tensor counts samples.
    """
    whole = any(axis is None for axis in axes)
    total = torch.zeros(1 if whole else samples, dtype=torch.float64, device=gradients[0].device)
    for gradient, perturbation, axis in zip(gradients, perturbations, axes, strict=True):
        if axis is None or axis.dimension == 0:
            gradient, perturbation = ordered_alike(gradient, perturbation)
        if whole or axis is None:
            parts = gradient.reshape(1, -1), perturbation.reshape(1, -1)
        else:
            parts = axis.apart(gradient, samples).flatten(1), axis.apart(perturbation, samples).flatten(1)
        total += torch.linalg.vecdot(*parts)
    return total
