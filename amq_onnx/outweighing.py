"""Activations that 8 bits are not enough for."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from amq_onnx.sensitivity import ActivationRow, WeightRow

# In nats, or as a share of the outputs' mean square: what an owner may notice.
_NOTICED = 1e-3
# Where all are alike, or there are two, one outweighs the others without being another kind of tensor.
_TIMES_THE_MEDIAN = 10


def outweighing(weights: Mapping[str, WeightRow], activations: Mapping[str, ActivationRow]) -> dict[str, str]:
    """Why these activations stay float: each loses more at 8 bits than all that are less sensitive together, weights at
    their widest included, ten times what half of all activations lose, and enough to be noticed.

    Their large and small numbers matter alike, as where attention is linear and its sums are divided: no one scale
    serves both. Rows need losses, or Ω in the same unit.
    """
    lost = {name: row.omega(8) for name, row in activations.items() if 8 in row.widths()}
    rest = sum(lost.values()) + sum(row.omega(row.widths()[-1]) for row in weights.values())
    least = max(_NOTICED, _TIMES_THE_MEDIAN * median(lost.values())) if lost else 0.0
    found: dict[str, str] = {}
    for name, loss in sorted(lost.items(), key=lambda item: -item[1]):
        rest -= loss
        if loss < least or loss <= rest:
            break
        found[name] = f"rounded to 8 bits it alone loses {loss:.2g}, more than all that is less sensitive together"
    return found
