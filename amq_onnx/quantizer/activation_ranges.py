"""Ranges of activations: one scale and one zero point for the tensor."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.encoding import Encoding, RangeMethod
from amq_onnx.quantizer.histogram import StreamingHistogram

_CANDIDATES = 48
_SWEEPS = 2
_PERCENTILE = 99.99


def activation_range(histogram: StreamingHistogram, bits: int, method: RangeMethod = "mse") -> tuple[float, float]:
    """The real range (low <= 0 <= high) that `bits` bits should cover.

    `minmax` is all that was seen, `percentile` leaves out the outermost 0.01 % of each side, `mse` has the
    least squared error over what was seen (a search over the lower and the upper end in turn).
    """
    if not histogram.count or histogram.minimum == histogram.maximum == 0.0:
        return 0.0, 1.0
    low, high = min(histogram.minimum, 0.0), max(histogram.maximum, 0.0)
    if method == "minmax":
        return low, high
    centres, counts = histogram.centres()
    if method == "percentile":
        share = np.cumsum(counts) / counts.sum() * 100
        last = len(centres) - 1
        lower = centres[min(int(np.searchsorted(share, 100 - _PERCENTILE)), last)]
        upper = centres[min(int(np.searchsorted(share, _PERCENTILE)), last)]
        clipped = min(float(lower), 0.0), max(float(upper), 0.0)
        return clipped if clipped[0] < clipped[1] else (low, high)
    weights = counts / counts.sum()
    factors = np.geomspace(1.0, 0.02 if bits <= 4 else 0.1, _CANDIDATES)
    best_low, best_high = low, high
    best = float(_errors(centres, weights, np.array([low]), np.array([high]), bits)[0])
    # Both ends shrink together first (the common case of symmetric tails), then each in turn.
    best_low, best_high, best = _better(
        centres, weights, low * factors, high * factors, bits, (best_low, best_high, best)
    )
    for _ in range(_SWEEPS):
        fixed = np.full(_CANDIDATES, best_low)
        best_low, best_high, best = _better(centres, weights, fixed, high * factors, bits, (best_low, best_high, best))
        fixed = np.full(_CANDIDATES, best_high)
        best_low, best_high, best = _better(centres, weights, low * factors, fixed, bits, (best_low, best_high, best))
    return best_low, best_high


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


def _better(
    centres: NDArray[np.float64],
    weights: NDArray[np.float64],
    lows: NDArray[np.float64],
    highs: NDArray[np.float64],
    bits: int,
    best: tuple[float, float, float],
) -> tuple[float, float, float]:
    errors = _errors(centres, weights, lows, highs, bits)
    index = int(np.argmin(errors))
    if errors[index] < best[2]:
        return float(lows[index]), float(highs[index]), float(errors[index])
    return best


def _errors(
    centres: NDArray[np.float64],
    weights: NDArray[np.float64],
    lows: NDArray[np.float64],
    highs: NDArray[np.float64],
    bits: int,
) -> NDArray[np.float64]:
    """Mean squared error of each candidate range, [candidates]."""
    levels = 2**bits - 1
    scale = np.maximum((highs - lows) / levels, 1e-300)[:, None]
    zero = np.clip(np.rint(-lows[:, None] / scale), 0, levels)
    codes = np.clip(np.rint(centres[None, :] / scale), -zero, levels - zero)
    return np.asarray(np.square(codes * scale - centres[None, :]) @ weights)
