"""What a quantized tensor's numbers mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAX_BITS = 16

RangeMethod = Literal["curvature", "mse", "minmax", "percentile"]
"""How ranges are found; for weights `curvature` is `mse`."""


@dataclass(frozen=True, eq=False)
class Encoding:
    """An affine encoding `real = scale * (code - zero_point)` of `bits` bits.

    scale: float32, shape [] for one scale for the tensor or [channels] along `axis`.
    zero_point: the code of the real number 0, one for the tensor.
    signed: codes run from -2^(bits-1) to 2^(bits-1) - 1, else from 0 to 2^bits - 1.
    """

    bits: int
    signed: bool
    scale: NDArray[np.float32]
    zero_point: int = 0
    axis: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= MAX_BITS:
            raise ValueError(f"an encoding has 1 to {MAX_BITS} bits, not {self.bits}")
        if (self.axis is None) != (np.ndim(self.scale) == 0):
            raise ValueError("a scale per channel needs an axis, a single scale has none")
        if not (np.isfinite(self.scale).all() and (np.asarray(self.scale) > 0).all()):
            raise ValueError("scales must be positive and finite")
        low, high = self.code_range
        if not low <= self.zero_point <= high:
            raise ValueError(f"zero point {self.zero_point} is outside the codes {low} to {high}")

    @property
    def code_range(self) -> tuple[int, int]:
        """Smallest and largest code."""
        return code_range(self.bits, self.signed)


def code_range(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest code of `bits` bits."""
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
