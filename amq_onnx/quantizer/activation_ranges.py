"""Ranges of activations: one scale and one zero point for the tensor."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.encoding import Encoding, RangeMethod
from amq_onnx.quantizer.histogram import StreamingHistogram

_COARSE = np.geomspace(1.0, 0.02, 48)
_FINE = np.linspace(0.92, 1.08, 17)
_PERCENTILE = 99.99
# How much finer or coarser a scale may become for a hard sigmoid to begin and end on a code, or for a shift.
_FINER, _COARSER = 1 / 1.02, 1.1
# How much larger its error may become for a shift to be a whole number of steps.
_WORSE = 1.25
# To look for an edge between two codes takes as long as to round this many bins.
_BINS_PER_EDGE = 7


def activation_range(
    histogram: StreamingHistogram, bits: int, method: RangeMethod = "curvature"
) -> tuple[float, float]:
    """The real range (low <= 0 <= high) that `bits` bits should cover.

    `minmax` is all that was seen, `percentile` leaves out the outermost 0.01 % of each side, `mse` has the least
    squared error over what was seen, `curvature` the least squared error weighted by the histogram's weights
    (the diagonal of the loss's curvature), which tells outliers that matter from those that don't.
    """
    if not histogram.count or histogram.minimum == histogram.maximum == 0.0:
        return 0.0, 1.0
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if method == "minmax":
        return low, high
    centres, amounts = histogram.centres(weighted=method == "curvature")
    shares = amounts / amounts.sum()
    if method == "percentile":
        percent = np.cumsum(shares) * 100
        last = len(centres) - 1
        lower = centres[min(int(np.searchsorted(percent, 100 - _PERCENTILE)), last)]
        upper = centres[min(int(np.searchsorted(percent, _PERCENTILE)), last)]
        clipped = min(float(lower), 0.0), max(float(upper), 0.0)
        return clipped if clipped[0] < clipped[1] else (low, high)
    search = _Search(centres, shares, bits, low, high)
    # Both ends shrink together first (the common case of symmetric tails), then each in turn, then finely.
    search.try_ranges(low * _COARSE, high * _COARSE)
    for factors in (_COARSE, _COARSE, _FINE):
        start_low, start_high = (low, high) if factors is _COARSE else (search.low, search.high)
        search.try_ranges(np.full(len(factors), search.low), start_high * factors)
        search.try_ranges(start_low * factors, np.full(len(factors), search.high))
    return search.low, search.high


def activation_encoding(low: float, high: float, bits: int) -> Encoding:
    """The unsigned encoding of `bits` bits that covers [low, high], with 0 exactly one of its values.

    The largest value never exceeds `high` by rounding of the scale where low is 0: a Relu6 in front of the
    quantizer may then be dropped by the runtime, since the codes imply it.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    levels = 2**bits - 1
    scale = np.float32((high - low) / levels) if high > low else np.float32(1.0)
    if not np.isfinite(scale) or scale < np.float32(1e-30):
        scale = np.float32(1.0)
    if low == 0.0 and float(np.float32(scale * np.float32(levels))) > high > 0:
        scale = np.nextafter(scale, np.float32(0))
    zero_point = int(np.clip(np.rint(-low / float(scale)), 0, levels))
    return Encoding(bits=bits, signed=False, scale=np.asarray(scale, np.float32), zero_point=zero_point)


def range_of_hard_sigmoid(
    low: float, high: float, bits: int, alpha: float, beta: float, alone: bool = False
) -> tuple[float, float]:
    """[low, high] moved so little that a hard sigmoid, max(0, min(1, alpha x + beta)), begins and ends on codes.

    alone: nothing else reads the tensor, so that it's moved by as much as it takes while the hard sigmoid keeps 128
    values. Unchanged where it would move by too much: few bits, or a range that doesn't reach where the hard sigmoid
    begins.
    """
    if alpha <= 0 or beta <= 0:
        return low, high
    scale = float(activation_encoding(low, high, bits).scale)
    finest, coarsest = (0.0, 1 / (127 * alpha)) if alone else (scale * _FINER, scale * _COARSER)
    start, end = -beta / alpha, max(1 - beta, 0.0) / alpha
    reaching = activation_encoding(start if alone else min(low, start), min(high, end) if alone else high, bits)
    zero_point = reaching.zero_point
    below = codes_below(float(reaching.scale), zero_point, alpha, beta)
    moved = beta / (alpha * below) if below else 0.0
    if not finest < moved < coarsest or abs(below / beta - round(below / beta)) > 1e-3:
        return low, high
    return -zero_point * moved, (2**bits - 1 - zero_point) * moved


def codes_below(scale: float, zero_point: int, alpha: float, beta: float) -> int:
    """How many codes below that of 0 a hard sigmoid begins, to the nearest one that there is."""
    return min(round(beta / (alpha * scale)), zero_point)


def range_of_shift(
    histogram: StreamingHistogram, low: float, high: float, bits: int, shift: float, method: RangeMethod = "curvature"
) -> tuple[float, float]:
    """[low, high], found by `method`, moved so little that `shift`, which was added to the tensor, is a whole number of
    steps.

    Steps become hardly finer: the few largest values, which they would cut off, matter more than their mean squared
    error tells. Unchanged where that error, weighted as for `method`, would become more than a quarter larger: a shift
    of few steps.
    """
    steps = abs(shift) / float(activation_encoding(low, high, bits).scale)
    moved = []
    for count in sorted({math.floor(steps), math.floor(steps / _FINER)} - {0}):
        scale = abs(shift) / count
        zero_point = min(round(-min(low, 0.0) / scale), 2**bits - 1)
        moved.append((-zero_point * scale, (2**bits - 1 - zero_point) * scale))
    least, *errors = (
        mean_squared_error(histogram, *ends, bits, weighted=method == "curvature") for ends in ((low, high), *moved)
    )
    if not errors or min(errors) > _WORSE * least:
        return low, high
    return moved[errors.index(min(errors))]


def mean_squared_error(
    histogram: StreamingHistogram, low: float, high: float, bits: int, *, weighted: bool = False
) -> float:
    """What rounding to `bits` bits that cover [low, high] does to a number of the histogram, squared, in the mean.

    weighted: by the histogram's weights.
    """
    if not histogram.count:
        return 0.0
    centres, amounts = histogram.centres(weighted=weighted)
    rounded = round_trip(centres.astype(np.float32), activation_encoding(low, high, bits))
    return float(np.square(rounded - centres) @ amounts / amounts.sum())


class _Search:
    """The best range so far, by mean squared error over the bins."""

    def __init__(
        self,
        centres: NDArray[np.float64],
        shares: NDArray[np.float64],
        bits: int,
        low: float,
        high: float,
    ) -> None:
        self.centres = centres
        self.shares = shares
        self.levels = 2**bits - 1
        # Up to each bin, shares times the zeroth and the first power of its centre; their sum for the second.
        moments = [np.concatenate(([0.0], np.cumsum(shares * centres**power))) for power in range(2)]
        self.amounts, self.sums = moments
        self.square = float(shares @ np.square(centres))
        self.low = self.least = low
        self.high = self.most = high
        self.error = float(self._errors(np.array([low]), np.array([high]))[0])

    def try_ranges(self, lows: NDArray[np.float64], highs: NDArray[np.float64]) -> None:
        """Take the best of the candidate ranges, [candidates], if it is better.

        None reaches beyond what was seen: a Relu6 could not be dropped in front of a range above 6.
        """
        lows, highs = np.maximum(lows, self.least), np.minimum(highs, self.most)
        errors = self._errors(lows, highs)
        index = int(np.argmin(errors))
        if errors[index] < self.error:
            self.low, self.high, self.error = float(lows[index]), float(highs[index]), float(errors[index])

    def _errors(self, lows: NDArray[np.float64], highs: NDArray[np.float64]) -> NDArray[np.float64]:
        scale = np.maximum((highs - lows) / self.levels, 1e-300)[:, None]
        zero = np.clip(np.rint(-lows[:, None] / scale), 0, self.levels)
        if self.levels * _BINS_PER_EDGE > len(self.centres):
            codes = np.clip(np.rint(self.centres[None, :] / scale), -zero, self.levels - zero)
            return np.asarray(np.square(codes * scale - self.centres[None, :]) @ self.shares)
        # Bins between two edges have one code, so that a code's error needs sums over its bins alone.
        codes = np.arange(self.levels + 1) - zero
        ends = np.searchsorted(self.centres, (codes[:, :-1] + 0.5) * scale)
        ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=((0, 0), (0, len(self.centres))))
        values = codes * scale
        products = (np.diff(self.sums[ends]) * values).sum(1)
        squares = (np.diff(self.amounts[ends]) * np.square(values)).sum(1)
        return np.asarray(self.square - 2 * products + squares)
