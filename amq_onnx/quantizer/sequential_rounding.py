"""Rounding in which each weight makes up for the errors of those before it.

Rounded to nearest, every weight errs by itself. Where inputs have much in common, what one weight adds to the output
another can take off again: weights are rounded one after another, each to the code nearest to what it should be, given
all errors so far (Frantar et al. 2022, arXiv 2210.17323). With E[xx'] = RR', R upper triangular, errors d of a
channel's weights cost d'RR'd = |R'd|^2, and the entry i of R'd depends on d up to i alone: the code of weight i is the
one that makes it least. No learning, a second a layer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.channel_rows import channel_rows, from_channel_rows
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.quantizer.output_error import OutputError

# Added to the diagonal in units of its mean, so that a factor is found where inputs repeat one another.
_JITTER = 1e-6
# Columns that are rounded before what they owe to all that follow is added up.
_BLOCK = 64


def sequentially_rounded(
    weight: NDArray[np.float32], axis: int | None, encodings: Mapping[int, Encoding], error: OutputError
) -> dict[int, NDArray[np.float32]]:
    """`weight` as it is after quantization at each of `encodings`, by their keys, float32 in its own shape.

    axis: of the output channels; encodings have one scale for each of them, or one in all. error: what an error of the
    weight does to its outputs. A channel whose outputs would err more than rounded to nearest is rounded to nearest.
    """
    rows = channel_rows(weight, axis)
    # All encodings at once: a pass over the columns takes as long for a few rows as for many.
    every = list(encodings.values())
    scale = np.stack([np.broadcast_to(encoding.scale, len(rows)) for encoding in every]).astype(np.float64)
    low, high = (
        np.array([encoding.code_range[end] - encoding.zero_point for encoding in every])[:, None] for end in (0, 1)
    )
    codes = np.zeros((len(every), *rows.shape))
    channels = len(rows) // error.groups
    for group in range(error.groups):
        part = slice(group * channels, (group + 1) * channels)
        moments = error.moments(group)
        # The largest inputs first: the errors of their weights weigh most, and all others can still make up for them.
        order = np.argsort(-np.diag(moments), kind="stable")
        factor = _upper_factor(moments[np.ix_(order, order)])
        codes[:, part, order] = _codes(rows[part, order].astype(np.float64), scale[:, part], low, high, factor)
    found = {}
    for bits, encoding, chosen in zip(encodings, every, codes, strict=True):
        rounded = chosen.astype(np.float32) * encoding.scale.reshape(-1, 1)
        nearest = channel_rows(round_trip(weight, encoding), axis)
        # What few and clipped codes owe, others can't make up for.
        costs = [error.product(difference, difference) for difference in (rounded - rows, nearest - rows)]
        kept = np.where((costs[0] < costs[1])[:, None], rounded, nearest)
        found[bits] = from_channel_rows(kept, axis, weight.shape)
    return found


def _upper_factor(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """R, upper triangular, with RR' = moments."""
    size = np.trace(moments) / len(moments)
    moments = moments + np.eye(len(moments)) * (_JITTER * size or 1.0)
    return np.asarray(np.linalg.cholesky(moments[::-1, ::-1])[::-1, ::-1])


def _codes(
    rows: NDArray[np.float64],
    scale: NDArray[np.float64],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    factor: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Codes less their zero points, [encodings, channels, elements], of rows [channels, elements]; scale: [encodings,
    channels]; low, high: [encodings, 1]; factor: see `_upper_factor`."""
    elements = rows.shape[1]
    codes = np.empty((*scale.shape, elements))
    errors = np.zeros((scale.size, elements))
    for first in range(0, elements, _BLOCK):
        last = min(first + _BLOCK, elements)
        owed = errors[:, :first] @ factor[:first, first:last]
        for column in range(first, last):
            due = owed[:, column - first] + errors[:, first:column] @ factor[first:column, column]
            wanted = rows[:, column] - due.reshape(scale.shape) / factor[column, column]
            codes[:, :, column] = np.clip(np.rint(wanted / scale), low, high)
            errors[:, column] = (codes[:, :, column] * scale - rows[:, column]).reshape(-1)
    return codes
