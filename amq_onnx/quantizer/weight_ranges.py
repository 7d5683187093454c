"""Scales of weights, one per output channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.channel_rows import channel_rows
from amq_onnx.quantizer.encoding import Encoding, RangeMethod, Widths, code_range, distinct
from amq_onnx.quantizer.output_error import OutputError

# Scales tried a channel by bits: at high widths the error has many local minima.
_CANDIDATES = {1: 40, 2: 40, 3: 40, 4: 60, 5: 80, 6: 80, 7: 80, 8: 80}
_LARGEST_FACTOR = 1.25
# Channels up to this length (depthwise convolutions) get the best scale of all, whose search takes
# elements x codes steps; long ones average their rounding errors, so that neighbouring scales do as well.
_EXACT_ELEMENTS = 64
_EXACT_STEPS = 1 << 18
_REFINEMENTS = 4
# Above these bits rounding errors are small whatever the scale, and the search for outputs isn't worth its time.
MOST_BITS_FOR_OUTPUTS = 6
_OUTPUT_CANDIDATES = 80
_PERCENTILE = 99.99
# Elements that one thread works on at a time: a few temporaries of this size stay in a core's cache.
_CHUNK = 1 << 16


class Norm(Protocol):
    """What the size of a channel's errors is told by."""

    def product(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
        """The inner product of each channel's rows, [channels], of two arrays [channels, elements]."""
        ...

    def below(self, rows: NDArray[np.float32], limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """product(rows, rows) where it is below `limits`, [channels]; elsewhere that or infinity."""
        ...


class _Plain:
    """The squared error of the weights themselves."""

    def product(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
        """See Norm."""
        return np.asarray(np.einsum("ij,ij->i", left, right), np.float64)

    def below(self, rows: NDArray[np.float32], limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """See Norm."""
        return self.product(rows, rows)


_PLAIN = _Plain()


@dataclass(frozen=True, eq=False)
class WeightEncodings:
    """Encodings of one weight at several widths.

    encodings: by bits. errors: by bits, squared error per output channel, float64 [channels].
    """

    encodings: dict[int, Encoding]
    errors: dict[int, NDArray[np.float64]]

    def squared_error(self, bits: int) -> float:
        """||Q(W) - W||^2 at `bits` bits."""
        return float(self.errors[bits].sum())


def weight_encodings(
    weight: NDArray[np.float32],
    axis: int | None,
    widths: Iterable[int],
    method: RangeMethod = "mse",
    threads: int = 2,
    output_error: OutputError | None = None,
) -> WeightEncodings:
    """Symmetric signed encodings of `weight`, one scale per index of `axis` (one in all without), for each of `widths`.

    `mse` (and `curvature`, which differs for activations only) searches, per channel and width, the scale of least
    squared error: exactly in short channels, in long ones by a geometric grid around the min-max scale, then
    alternating least squares (codes for the scale, the best scale for the codes). output_error: up to
    MOST_BITS_FOR_OUTPUTS bits, `mse` and `curvature` search the scale of the least of these errors instead.
    """
    rows = channel_rows(weight, axis)
    step = max(1, _CHUNK // max(1, rows.shape[1]))
    group = 1 if output_error is None or output_error.groups == 1 else rows.shape[0] // output_error.groups
    step = -(-step // group) * group
    chunks = [slice(start, start + step) for start in range(0, rows.shape[0], step)]

    def scales(bits: int, chunk: slice) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        error = output_error
        if error is not None and error.groups > 1:
            error = error.of_groups(chunk.start // group, chunk.stop // group)
        return _scales(rows[chunk], bits, method, error)

    encodings: dict[int, Encoding] = {}
    errors: dict[int, NDArray[np.float64]] = {}
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for bits in sorted(set(widths)):
            found = list(pool.map(partial(scales, bits), chunks))
            scale = np.concatenate([scale for scale, _ in found])
            encodings[bits] = Encoding(bits, signed=True, scale=scale[0] if axis is None else scale, axis=axis)
            errors[bits] = np.concatenate([error for _, error in found])
    return WeightEncodings(encodings, errors)


def encoding_at(
    weight: NDArray[np.float32],
    axis: int | None,
    widths: Widths,
    method: RangeMethod = "mse",
    known: Mapping[int, NDArray[np.float32]] | None = None,
) -> Encoding:
    """The encoding of `weight` at `widths`: each channel's scale is that of a weight of its width.

    known: scales [channels] by bits, that needn't be searched. Raises ValueError for widths of channels where there is
    no axis or another number of channels, and for known scales of another number of channels.
    """
    known = known or {}
    for bits in distinct(widths):
        if bits in known and (axis is None or known[bits].shape != (weight.shape[axis],)):
            raise ValueError(f"{known[bits].size} scales for {1 if axis is None else weight.shape[axis]} channels")
    if isinstance(widths, int):
        if widths in known:
            return Encoding(widths, signed=True, scale=known[widths], axis=axis)
        return weight_encodings(weight, axis, [widths], method).encodings[widths]
    if axis is None or len(widths) != weight.shape[axis]:
        raise ValueError(f"{len(widths)} widths for {1 if axis is None else weight.shape[axis]} channels")
    scale = np.zeros(len(widths), np.float32)
    for bits in distinct(widths):
        channels = np.flatnonzero(np.array(widths) == bits)
        of_width = {bits: known[bits][channels]} if bits in known else {}
        scale[channels] = encoding_at(np.take(weight, channels, axis), axis, bits, method, of_width).scale
    return Encoding(max(widths), signed=True, scale=scale, axis=axis, widths=widths)


def bias_safe_scale(encoding: Encoding, bias: NDArray[np.float32], input_scale: float) -> NDArray[np.float32]:
    """The scale raised where `bias / (input_scale * scale)` would not fit an int32.

    Channels whose weights are (almost) zero have tiny scales; their bias is stored in units of
    `input_scale * scale`, the only scale with which onnxruntime fuses an int32 bias.
    """
    least = np.abs(bias, dtype=np.float64) / (input_scale * 2.0**30)
    return np.maximum(encoding.scale, least.astype(np.float32))


def _scales(
    rows: NDArray[np.float32], bits: int, method: RangeMethod, output_error: OutputError | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scales and squared errors of the channels in `rows`, [channels, elements]."""
    low, high = code_range(bits, signed=True)
    widest = max(high, 1)
    magnitude = np.abs(rows).max(axis=1) if rows.shape[1] else np.zeros(rows.shape[0], np.float32)
    if method == "percentile" and rows.shape[1]:
        magnitude = np.percentile(np.abs(rows), _PERCENTILE, axis=1).astype(np.float32)
    # A channel of zeros (or of denormals, whose scale would be zero) takes a scale of 1: every code is 0.
    full = np.where(magnitude > 1e-30, magnitude / np.float32(widest), 1.0).astype(np.float32)
    if method not in ("mse", "curvature"):
        return full, _error(rows, full, bits, _PLAIN)
    if rows.shape[1] <= _EXACT_ELEMENTS and bits <= 8:
        exact = np.where(magnitude > 1e-30, _best_scale(rows, low, high), full).astype(np.float32)
        scale, error = _better(rows, full, _error(rows, full, bits, _PLAIN), exact, bits, _PLAIN)
    else:
        scale, error = _searched(rows, full, full, bits, _CANDIDATES.get(bits, 80), _PLAIN)
    if output_error is None or bits > MOST_BITS_FOR_OUTPUTS:
        return scale, error
    scale, _ = _searched(rows, scale, full, bits, _OUTPUT_CANDIDATES, output_error)
    return scale, _error(rows, scale, bits, _PLAIN)


def _searched(
    rows: NDArray[np.float32],
    start: NDArray[np.float32],
    full: NDArray[np.float32],
    bits: int,
    candidates: int,
    norm: Norm,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Scales of the least error <d, d> that a grid around `full` and a descent from there find, and these errors.

    Where none is better it is `start`.
    """
    low, high = code_range(bits, signed=True)
    best, best_error = start, _error(rows, start, bits, norm)
    # The best clipping of bell-shaped weights leaves about 1.5 sigma at 1-2 bits and 4-5 sigma at 8 bits, so
    # low widths need a wide search and high widths only the neighbourhood of the full range.
    smallest = {1: 0.05, 2: 0.1, 3: 0.15, 4: 0.25, 5: 0.35}.get(bits, 0.5)
    for factor in np.geomspace(_LARGEST_FACTOR, smallest, candidates):
        best, best_error = _better(rows, best, best_error, full * np.float32(factor), bits, norm)
    for _ in range(_REFINEMENTS):
        codes = _codes(rows, best, low, high)
        power, dot = norm.product(codes, codes), norm.product(codes, rows)
        usable = (power > 0) & (dot > 0)
        scale = np.where(usable, dot / np.where(usable, power, 1), best).astype(np.float32)
        before = best_error
        best, best_error = _better(rows, best, best_error, scale, bits, norm)
        if not (best_error < before).any():
            break
    return best.astype(np.float32), best_error


def _better(
    rows: NDArray[np.float32],
    best: NDArray[np.float32],
    best_error: NDArray[np.float64],
    candidate: NDArray[np.float32],
    bits: int,
    norm: Norm,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Of each channel, the scale of less error, and that error."""
    error = norm.below(_difference(rows, candidate, bits), best_error)
    better = error < best_error
    return np.where(better, candidate, best), np.where(better, error, best_error)


def _best_scale(rows: NDArray[np.float32], low: int, high: int) -> NDArray[np.float64]:
    """argmin over s of ||s codes(s) - rows||^2, exactly.

    As s falls from infinity, the size k of one code after another grows by 1, at s = |x| / (k - 1/2). Between two
    such steps the codes are fixed, with a = <codes, x> and b = <codes, codes>, and s = a / b leaves ||x||^2 - a^2 / b:
    the greatest a^2 / b of all is the minimum.
    """
    sizes = np.arange(1, max(high, -low) + 1, dtype=np.float64)
    scales = np.ones(len(rows))
    step = max(1, _EXACT_STEPS // max(1, rows.shape[1] * len(sizes)))
    for start in range(0, len(rows), step):
        part = rows[start : start + step].astype(np.float64)
        magnitude = np.abs(part)[:, :, None]
        allowed = sizes <= np.where(part > 0, high, -low)[:, :, None]
        order = np.argsort(-(magnitude / (sizes - 0.5)).reshape(len(part), -1), axis=1)
        product = np.where(allowed, magnitude, 0.0).reshape(len(part), -1)
        power = np.where(allowed, 2 * sizes - 1, 0.0).reshape(len(part), -1)
        product = np.take_along_axis(product, order, 1).cumsum(axis=1)
        power = np.take_along_axis(power, order, 1).cumsum(axis=1)
        gain = np.square(product) / np.maximum(power, 1.0)
        best = gain.argmax(axis=1)[:, None]
        products, powers = np.take_along_axis(product, best, 1)[:, 0], np.take_along_axis(power, best, 1)[:, 0]
        usable = products > 0
        scales[start : start + step] = np.where(usable, products / np.where(usable, powers, 1.0), 1.0)
    return scales


def _codes(rows: NDArray[np.float32], scale: NDArray[np.float32], low: int, high: int) -> NDArray[np.float32]:
    codes = rows / scale[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, low, high, out=codes)
    return codes


def _difference(rows: NDArray[np.float32], scale: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """What rounding with `scale` changes."""
    difference = _codes(rows, scale, *code_range(bits, signed=True))
    difference *= scale[:, None]
    difference -= rows
    return difference


def _error(rows: NDArray[np.float32], scale: NDArray[np.float32], bits: int, norm: Norm) -> NDArray[np.float64]:
    """<d, d> of each channel, d what rounding with `scale` changes."""
    difference = _difference(rows, scale, bits)
    return norm.product(difference, difference)
