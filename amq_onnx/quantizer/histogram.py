"""A histogram of a stream whose range isn't known before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 15
_LEAST_EXPONENT = -126


class StreamingHistogram:
    """Counts of real numbers in equal bins around zero, in constant memory.

    Bin i counts numbers in [i w, (i + 1) w). When a number falls outside the bins, the width w doubles and
    neighbouring bins merge, which is exact since a bin's edges stay multiples of w; w is a power of two, so
    that the same stream gives the same bins however it is cut into batches. Between `bins` / 2 and `bins`
    bins span the larger of |minimum| and maximum.
    """

    def __init__(self, bins: int = 4096) -> None:
        if bins < 4 or bins & (bins - 1):
            raise ValueError("the number of bins must be a power of two, 4 or more")
        self._half = bins
        self._exponent: int | None = None
        self._counts = np.zeros(2 * bins, np.int64)
        self._weights = np.zeros(2 * bins)
        self.minimum = np.inf
        self.maximum = -np.inf

    @property
    def count(self) -> int:
        """How many numbers were counted."""
        return int(self._counts.sum())

    def update(self, values: NDArray[np.float32]) -> None:
        """Count `values` of any shape.

        Raises ValueError if one of them is not finite.
        """
        flat = values.ravel(order="K")
        if not flat.size:
            return
        low, high = float(flat.min()), float(flat.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("a value is not finite")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)
        self._widen(max(abs(low), abs(high)))
        if self._exponent is None:  # nothing but zeros so far
            self._counts[self._half] += flat.size
            return
        for index, _ in self._indices(flat):
            self._counts += np.bincount(index, minlength=2 * self._half)

    def weigh(self, values: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
        """Add `weights` to the bins of `values`, of the same size; values that `update` has seen."""
        flat, added = np.ravel(values), np.ravel(weights)
        if self._exponent is None:
            self._weights[self._half] += float(added.sum(dtype=np.float64))
            return
        for index, chunk in self._indices(flat):
            np.clip(index, 0, 2 * self._half - 1, out=index)
            self._weights += np.bincount(index, added[chunk], minlength=2 * self._half)

    def centres(self, weighted: bool = False) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres of the bins that counted something, in rising order, and each one's count.

        weighted: sums of weights rather than counts, where there are weights.
        """
        used = np.flatnonzero(self._counts)
        width = 0.0 if self._exponent is None else 2.0**self._exponent
        centres = np.clip((used - self._half + 0.5) * width, self.minimum, self.maximum)
        if width == 0.0:
            centres = np.zeros(len(used))
        amounts = self._counts[used].astype(np.float64)
        # An estimate of a Hessian's diagonal may be negative in a bin; no error can be worth less than nothing.
        weights = np.maximum(self._weights[used], 0.0)
        if weighted and weights.sum() > 0:
            amounts = weights
        return centres, amounts

    def _indices(self, flat: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.intp], slice]]:
        """Bins of `flat`, chunk by chunk: a chunk and its indices stay in a core's cache, which is eight times as
        fast as one pass over all. The width is a power of two, so the product is exact: in float32 unless it may be
        smaller than the least float32, which only a width above 1 makes it."""
        exponent = self._exponent or 0
        inverse = (np.float64 if exponent > 0 else np.float32)(2.0**-exponent)
        index = np.empty(_CHUNK, np.intp)
        for start in range(0, flat.size, _CHUNK):
            chunk = slice(start, min(start + _CHUNK, flat.size))
            scaled = flat[chunk] * inverse
            np.floor(scaled, out=scaled)
            part = index[: scaled.size]
            part[:] = scaled
            part += self._half
            yield part, chunk

    def _widen(self, magnitude: float) -> None:
        if magnitude == 0.0:
            return
        # A width below 2^-126 has no float32 inverse; what is smaller falls into the bins around zero.
        needed = max(_LEAST_EXPONENT, int(np.floor(np.log2(magnitude / self._half))) + 1)
        if self._exponent is None:
            self._exponent = needed
            return
        while self._exponent < needed:
            # Bin i merges into floor(i / 2); indices start at -half, which is even.
            merged = self._counts[0::2] + self._counts[1::2]
            self._counts[:] = 0
            self._counts[self._half // 2 : self._half // 2 + self._half] = merged
            self._exponent += 1
