"""A tensor as rows, one for each channel, and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def channel_rows(values: NDArray[np.float32], axis: int | None) -> NDArray[np.float32]:
    """[channels, elements] of a tensor whose channels run along `axis`; a single row where it is None."""
    if axis is None:
        return values.reshape(1, -1)
    return np.ascontiguousarray(np.moveaxis(values, axis, 0)).reshape(values.shape[axis], -1)


def from_channel_rows(rows: NDArray[np.float32], axis: int | None, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The tensor of `shape` whose `channel_rows` these are."""
    if axis is None:
        return rows.reshape(shape)
    others = shape[:axis] + shape[axis + 1 :]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape[axis], *others), 0, axis))
