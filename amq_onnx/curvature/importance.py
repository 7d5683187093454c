"""Which samples to look at: those on which something depends, each with the weight that keeps means unbiased."""

from __future__ import annotations

import torch
from torch import Tensor

# A share of the chances that all have alike, so that no weight exceeds its inverse (defensive mixture: Hesterberg
# 1995, "Weighted average importance sampling and defensive mixture distributions").
_UNIFORM = 0.1


def choose_samples(importance: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """About `count` of the samples, rising, and their weights: sum over chosen of weight x f estimates the mean of f.

    Systematic sampling (Madow 1949): sample n is met count x p_n times on average, p_n in proportion to `importance`
    but for a tenth that all share, and weighs 1 / (count N p_n) a time. Unbiased for every f, since the expected
    weight of each sample is 1 / N; without variance where f is in proportion to p. All samples with weights 1 / N where
    `count` is no less than their number.

    importance: [N], not negative.
    """
    size = len(importance)
    if count >= size:
        return torch.arange(size), torch.full((size,), 1 / size, dtype=torch.float64)
    chance = importance.double().cpu()
    total = float(chance.sum())
    share = chance / total if total > 0 else torch.full((size,), 1 / size, dtype=torch.float64)
    chance = (1 - _UNIFORM) * share + _UNIFORM / size
    order = torch.randperm(size, generator=generator)
    start = torch.rand(1, generator=generator, dtype=torch.float64)
    places = (start + torch.arange(count)) / count
    met = torch.searchsorted(chance[order].cumsum(0), places, right=True).clamp_max(size - 1)
    times = torch.bincount(order[met], minlength=size)
    chosen = times.nonzero()[:, 0]
    return chosen, times[chosen] / (count * size * chance[chosen])
