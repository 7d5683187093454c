"""Sizes as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from amq_onnx.errors import UsageError

_UNITS = {"B": 1, "KB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


@dataclass(frozen=True)
class Size:
    """A bound on a file: so many bytes, or a fraction of the input file."""

    amount: Fraction
    fraction: bool

    def bytes(self, original: int) -> int:
        """The bound for an input file of `original` bytes."""
        return int(self.amount * original) if self.fraction else int(self.amount)


def parse_size(text: str | float) -> Size:
    """ "0.2", "20%", "4MB", "300KB", "123456B", or a float as a fraction.

    Raises UsageError for anything else; a bare whole number is refused, since it could be either.
    """
    if isinstance(text, float):
        text = format(Decimal(repr(text)), "f") if math.isfinite(text) else repr(text)
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|B|KB|MB|GB)?\s*", str(text), re.IGNORECASE | re.ASCII)
    if match is None:
        raise UsageError(f"--size '{text}' is not a size: write 0.2, 20%, 4MB or 300KB")
    number, unit = Fraction(Decimal(match[1])), (match[2] or "").upper()
    if unit in _UNITS:
        return Size(number * _UNITS[unit], fraction=False)
    if not unit and "." not in match[1]:
        raise UsageError(f"--size '{text}' could be bytes or a fraction: write {text}B, or a fraction such as 0.2")
    fraction = number / 100 if unit == "%" else number
    if not 0 < fraction <= 1:
        raise UsageError(f"--size '{text}' is {float(fraction):g} of the input file: a fraction is between 0 and 1")
    return Size(fraction, fraction=True)
