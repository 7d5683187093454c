"""Which dimension of a tensor counts the samples of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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


def per_sample(values: Tensor, samples: int) -> Tensor:
    """Sums over each sample, float64 [samples].

    Samples are taken to run along the first dimension, alone or slower than what is folded with them (heads, tokens).
    Where its size doesn't allow that, the total is spread evenly: a product of means then stands for a mean of
    products.
    """
    if values.ndim and values.shape[0] % samples == 0:
        return values.double().reshape(samples, -1).sum(1)
    return (values.double().sum() / samples).expand(samples)
