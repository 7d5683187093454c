"""What a quantized tensor's numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 16

RangeMethod = Literal["curvature", "mse", "minmax", "percentile"]
"""How ranges are found; for weights `curvature` is `mse`."""


Widths = int | tuple[int, ...]
"""The bits of a tensor, or of each of its channels."""


def distinct(widths: Widths) -> tuple[int, ...]:
    """The widths that are in use, rising."""
    return (widths,) if isinstance(widths, int) else tuple(sorted(set(widths)))


def mean_width(widths: Widths) -> float:
    """Mean width of a tensor's channels, which all have as many elements."""
    return float(np.mean(widths))


@dataclass(frozen=True, eq=False)
class Encoding:
    """An affine encoding `real = scale * (code - zero_point)` of `bits` bits.

    scale: float32, shape [] for one scale for the tensor or [channels] along `axis`.
    zero_point: the code of the real number 0, one for the tensor.
    signed: codes run from -2^(bits-1) to 2^(bits-1) - 1, else from 0 to 2^bits - 1.
    widths: where channels differ, the bits of each, shape [channels]; `bits` is then the most of them.
    """

    bits: int
    signed: bool
    scale: NDArray[np.float32]
    zero_point: int = 0
    axis: int | None = None
    widths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"an encoding has 1 to {MAX_BITS} bits, not {self.bits}")
        if (self.axis is None) != (np.ndim(self.scale) == 0):
            raise ValueError("a scale per channel needs an axis, a single scale has none")
        if not (np.isfinite(self.scale).all() and (np.asarray(self.scale) > 0).all()):
            raise ValueError("scales must be positive and finite")
        if self.widths is not None:
            if self.axis is None or len(self.widths) != np.size(self.scale):
                raise ValueError("widths of channels need an axis and a scale for each channel")
            if min(self.widths) < 1 or max(self.widths) != self.bits:
                raise ValueError(f"channels have 1 to {self.bits} bits, one of them {self.bits}")
        low, high = code_range(min(self.widths or (self.bits,)), self.signed)
        if not low <= self.zero_point <= high:
            raise ValueError(f"zero point {self.zero_point} is outside the codes {low} to {high}")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code of the widest channel."""
        return code_range(self.bits, self.signed)

    def code_bounds(self, rank: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Smallest and largest code, shaped to broadcast against a tensor of `rank` dimensions."""
        if self.widths is None or self.axis is None:
            low, high = self.code_range
            return np.asarray(low, np.int32), np.asarray(high, np.int32)
        ends = np.array([code_range(bits, self.signed) for bits in self.widths], np.int32)
        shape = [1] * rank
        shape[self.axis] = -1
        return ends[:, 0].reshape(shape), ends[:, 1].reshape(shape)


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code of `bits` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
