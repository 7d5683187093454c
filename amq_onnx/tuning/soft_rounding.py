"""Rounding that can be learned: each weight's code moves between the two whole numbers around it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The sigmoid is stretched beyond [0, 1] and cut there, so that it reaches both ends (Louizos et al. 2018,
# arXiv 1712.01312; AdaRound, Nagel et al. 2020, arXiv 2004.10568, equation 23).
_STRETCH = 0.1
_SETTLED = 0.02


class SoftCodes:
    """The codes of one weight, each the whole number below it plus a share h(v) in [0, 1] that is learned.

    Starts at the weight itself. A code outside of the bounds starts at the nearer one of them, and can leave it.

    weight: float, any shape. scale: broadcasts against it. low, high: bounds of the codes, broadcasting likewise.
    """

    def __init__(self, weight: Tensor, scale: Tensor, low: Tensor, high: Tensor) -> None:
        exact = weight / scale
        self.below = torch.minimum(torch.maximum(exact.floor(), low), high - 1)
        self.nearest = torch.minimum(torch.maximum(exact.round(), low), high)
        share = (exact - self.below).clamp(0.01, 0.99)
        self.variable = -torch.log((1 + 2 * _STRETCH) / (share + _STRETCH) - 1)
        self.variable.requires_grad_()

    def shares(self) -> Tensor:
        """h(v), in the weight's shape."""
        return (torch.sigmoid(self.variable) * (1 + 2 * _STRETCH) - _STRETCH).clamp(0, 1)

    def soft(self) -> Tensor:
        """Codes that gradients pass through."""
        return self.below + self.shares()

    def hard(self) -> Tensor:
        """Whole codes."""
        with torch.no_grad():
            return self.below + (self.shares() >= 0.5).to(self.below.dtype)

    def unsettled(self, beta: float) -> Tensor:
        """sum of 1 - |2 h - 1|^beta: how far the shares are from 0 and 1 (AdaRound, equation 24)."""
        return (1 - (2 * self.shares() - 1).abs().pow(beta)).sum()

    def settled(self) -> int:
        """How many shares are within 2 % of 0 or 1."""
        with torch.no_grad():
            shares = self.shares()
            return int(((shares < _SETTLED) | (shares > 1 - _SETTLED)).sum())


def annealed_beta(progress: float) -> float:
    """The exponent for `unsettled` after a share of the annealing: from 20, which leaves all but the nearly settled
    alone, to 2, along a cosine."""
    return 2 + 18 * 0.5 * (1 + math.cos(math.pi * progress))
