"""Numbers and widths as they are said, on the terminal and in the report."""

from __future__ import annotations

from collections import Counter

from amq_onnx.quantizer.encoding import Widths, mean_width


def count(number: float) -> str:
    """A number of bytes or elements, with thousands marked."""
    return f"{number:,.0f}"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def real(number: float) -> str:
    """A number of any size, to three digits."""
    return f"{number:.3g}"


def mix(widths: Widths) -> str:
    """A width, or the mean of the channels' and how many have which."""
    if isinstance(widths, int):
        return str(widths)
    counts = " + ".join(f"{count} x {bits}" for bits, count in sorted(Counter(widths).items()))
    return f"{mean_width(widths):.2f} ({counts})"
