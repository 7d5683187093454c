"""Which dimension of a tensor counts the samples of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amq_onnx.curvature.vector_jacobian import vector_jacobian
from amq_onnx.layout import in_memory_order


@dataclass(frozen=True)
class SampleAxis:
    """A dimension that counts samples, alone or folded with something else (tokens, heads).

    dimension: which. inner: True where the samples run faster than what they are folded with.
    """

    dimension: int
    inner: bool = False

    def apart(self, tensor: Tensor, samples: int) -> Tensor:
        """`tensor` with the samples in a dimension of their own, in front."""
        shape = list(tensor.shape)
        others = shape[self.dimension] // samples
        shape[self.dimension : self.dimension + 1] = [others, samples] if self.inner else [samples, others]
        return tensor.reshape(shape).movedim(self.dimension + int(self.inner), 0)


def find_sample_axis(gradient: Tensor, samples: int) -> SampleAxis | None:
    """Where a tensor of `samples` samples counts them, told from the gradient of the first sample's scores in it.

    That gradient is zero at all that belongs to other samples. None where no dimension fits, or all is zero.
    """
    if not gradient.any():
        return None
    for dimension, size in enumerate(gradient.shape):
        for inner in (False, True):
            axis = SampleAxis(dimension, inner)
            if size % samples == 0 and not axis.apart(gradient, samples)[1:].any():
                return axis
    return None


def sample_axes(scores: Sequence[Tensor], points: Sequence[Tensor], samples: int) -> list[SampleAxis | None]:
    """Where each of `points`, which `scores` [samples, ...] were computed from with gradients, counts samples.

    One backward pass, from the first sample's scores. None where scores don't run over the samples in front.
    """
    if not points or any(score.shape[:1] != (samples,) for score in scores):
        return [None] * len(points)
    pulled = []
    for score in scores:
        vector = torch.zeros_like(score)
        generator = torch.Generator().manual_seed(0)
        vector[0] = torch.rand(score.shape[1:], generator=generator).add_(0.5).to(score)
        pulled.append(vector)
    gradients = vector_jacobian(scores, pulled, points)
    return [None if gradient is None else find_sample_axis(gradient, samples) for gradient in gradients]


def per_sample(values: Tensor, samples: int, axis: SampleAxis | None = None) -> Tensor:
    """Sums over each sample, float64 [samples].

    Without an `axis` samples are taken to run along the first dimension, alone or slower than what is folded with them
    (heads, tokens). Where its size doesn't allow that, the total is spread evenly: a product of means then stands for a
    mean of products.
    """
    if axis is not None and values.shape[axis.dimension] % samples == 0:
        return axis.apart(values, samples).reshape(samples, -1).sum(1).double()
    if values.ndim and values.shape[0] % samples == 0:
        return in_memory_order(values).reshape(samples, -1).sum(1).double()
    return (values.double().sum() / samples).expand(samples)
