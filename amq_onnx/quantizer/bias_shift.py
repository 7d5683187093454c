"""What rounding a weight adds to the mean of a layer's output."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def bias_shift(
    weight: NDArray[np.float32],
    rounded: NDArray[np.float32],
    axis: int,
    expected: NDArray[np.float32],
    groups: int = 1,
) -> NDArray[np.float32]:
    """E[Q(W) x] - E[W x] of each output channel, float32 [channels].

    rounded: the weight after quantization. axis: the output channels' dimension of both. expected: what the weights of
    a channel are multiplied with on average: the weight's shape, the dimension `axis` in front and as long as there are
    different inputs (1, or the groups of a Conv). groups: of a ConvTranspose, whose groups follow one another along the
    dimension of the inputs.

    Raises ValueError for expected inputs of another shape.
    """
    error = np.moveaxis((rounded - weight).astype(np.float64), axis, 0)
    if expected.ndim != error.ndim or expected.shape[1:] != error.shape[1:] or len(error) % max(1, len(expected)):
        raise ValueError(f"shape {expected.shape} where {(1, *error.shape[1:])} is needed")
    weighted = error * np.repeat(expected, len(error) // len(expected), axis=0)
    if groups == 1:
        return np.asarray(weighted.reshape(len(error), -1).sum(1), np.float32)
    per_group = weighted.reshape(len(error), groups, -1).sum(2)  # [channels of a group, groups]
    return np.asarray(per_group.T.reshape(-1), np.float32)
