"""Regret of plans: their losses on held-out data over those of the best plan, and what of it is luck of the best.

Losses of a plan are those of the held-out samples, [samples]; a method's plans are one for every size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]
_SPLITS = 16


def best_plans(found: Iterable[Sequence[Losses]]) -> list[Losses]:
    """By size, the losses of the best of the plans that methods found."""
    return [min(of_size, key=lambda losses: float(losses.mean())) for of_size in zip(*found, strict=True)]


def regret(plans: Sequence[Losses], best: Sequence[Losses]) -> NDArray[np.float64]:
    """Loss over the best plan's by size, and its standard error over samples, paired: [2, sizes]."""
    found = []
    for ours, theirs in zip(plans, best, strict=True):
        ratio = ours.mean() / theirs.mean()
        found.append((ratio, (ours - ratio * theirs).std() / theirs.mean() / len(ours) ** 0.5))
    return np.array(found).T


def mean_regret_beside_unseen(
    plans: Sequence[Sequence[Losses]], rivals: Sequence[Sequence[Sequence[Losses]]]
) -> tuple[float, float]:
    """Mean regret where the best plan is found on one half of the samples and compared on the other; standard error.

    plans: by seed and size; rivals: by seed, the plans of every method, these included. The best of several plans on
    the very samples that it is compared on is best by luck too: where plans are equally good, all of them have a regret
    above 1 beside it, and here of 1. The mean is the geometric one, over sizes, seeds and halves that are drawn anew a
    number of times.
    """
    samples = len(plans[0][0])
    generator = np.random.default_rng(0)
    logarithms: list[float] = []
    influence = np.zeros(samples)
    for _ in range(_SPLITS):
        order = generator.permutation(samples)
        halves = order[: samples // 2], order[samples // 2 :]
        for seen, unseen in (halves, halves[::-1]):
            for of_seed, of_rivals in zip(plans, rivals, strict=True):
                for ours, others in zip(of_seed, zip(*of_rivals, strict=True), strict=True):
                    best = min(others, key=lambda losses: float(losses[seen].mean()))[unseen]
                    here = ours[unseen]
                    logarithms.append(float(np.log(here.mean() / best.mean())))
                    influence[unseen] += here / here.mean() - best / best.mean()
    influence *= 2 / len(logarithms)
    mean = float(np.exp(np.mean(logarithms)))
    return mean, mean * float(influence.std()) / samples**0.5


def geometric_mean(ratios: NDArray[np.float64]) -> float:
    """The mean of ratios."""
    return float(np.exp(np.log(ratios).mean()))
