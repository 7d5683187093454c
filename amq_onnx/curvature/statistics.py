"""Means of repeated draws with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

# Relative errors below this are as good as none, above its inverse as good as not knowing.
_EXACT = 1e-6
# Share of the largest estimate that stands for zero where logarithms are taken.
_NOTHING = 1e-12


class UnitMeans:
    """The sum over units of each unit's expected value, from repeated draws of every unit.

    A unit is a batch or a sample of a fixed data set: the error is that of the random probes, for these data.
    Running means and squared deviations are Welford's (1962), per unit.
    """

    def __init__(self) -> None:
        self._count: list[int] = []
        self._mean: list[float] = []
        self._deviation: list[float] = []

    def add(self, unit: int, value: float) -> None:
        """Add a draw of unit number `unit` (units are numbered from 0 in order of their first draw)."""
        if unit == len(self._count):
            self._count.append(0)
            self._mean.append(0.0)
            self._deviation.append(0.0)
        self._count[unit] += 1
        difference = value - self._mean[unit]
        self._mean[unit] += difference / self._count[unit]
        self._deviation[unit] += difference * (value - self._mean[unit])

    def means(self) -> NDArray[np.float64]:
        """Mean of each unit, [units]."""
        return np.array(self._mean)

    def variances(self) -> NDArray[np.float64]:
        """Variance of each unit's mean, [units]; infinite with fewer than two draws."""
        count = np.array(self._count, np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            variance = np.array(self._deviation) / (count - 1) / count
        return np.where(count > 1, variance, np.inf)

    def counts(self) -> NDArray[np.int64]:
        """Draws of each unit, [units]."""
        return np.array(self._count, np.int64)

    def total(self) -> float:
        """Sum of the means over the units."""
        return float(np.sum(self._mean))

    def standard_error(self) -> float:
        """Standard error of `total`."""
        return float(np.sqrt(self.variances().sum()))


def shrunk(values: NDArray[np.float64], variances: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Estimates drawn towards their mean by the share of their spread that is chance (James and Stein 1961).

    variances: of each estimate, None where they are unknown: then nothing but the mean is. The mean stays. A class that
    no sample belongs to has no curvature on these data, which says nothing of others: where few samples make up what an
    estimate is, all take the mean.
    """
    spread = float(values.var(ddof=1)) if len(values) > 1 else 0.0
    chance = 1.0 if variances is None or spread == 0 else float(variances.mean()) / spread
    return np.asarray(values.mean() + max(0.0, 1 - chance) * (values - values.mean()), np.float64)


def sum_with_error(contributions: NDArray[np.float64]) -> tuple[float, float]:
    """The sum over units (samples or batches, drawn at random) and its standard error, infinite for a single unit.

    With the units' mean m, the variance of a sum of n alike is n times that of one: n / (n - 1) sum (x - m)^2.
    """
    count = len(contributions)
    total = float(contributions.sum())
    if count < 2:
        return total, float("inf")
    return total, float(np.sqrt(count * contributions.var(ddof=1)))


def ratio_estimate(
    cheap: NDArray[np.float64], exact: NDArray[np.float64], chosen: NDArray[np.intp]
) -> tuple[float, float]:
    """The sum of an exact quantity over all units, known on some of them, by its ratio to one known on all; its error.

    sum(cheap) x sum(exact) / sum(cheap[chosen]): the double-sampling ratio estimator (Cochran 1977, "Sampling
    Techniques", section 12.8). Units differ far more between each other than the two quantities do on one unit, so
    that a few units tell the ratio well. Its bias is of order 1 / units; with a ratio of 1 and exact = cheap there is
    none. Where the cheap quantity is zero on all chosen ones it is the plain expansion of `exact`. The error adds the
    variance of the first sum and that of the residuals exact - ratio x cheap.

    cheap: [units]. exact: of the units `chosen`, [chosen].
    """
    total, error = sum_with_error(cheap)
    count, known = len(cheap), len(exact)
    base = float(cheap[chosen].sum())
    if base <= 0:
        expanded, spread = sum_with_error(exact)
        return expanded * count / known, spread * count / known
    ratio = float(exact.sum()) / base
    if known == count:
        return ratio * total, sum_with_error(exact)[1]
    residual = sum_with_error(exact - ratio * cheap[chosen])[1] * count / known
    return ratio * total, float(np.hypot(ratio * error, residual))


def falling(estimates: Mapping[int, tuple[float, float]], least: float = 1.1) -> dict[int, tuple[float, float]]:
    """Estimates that fall with each bit to 1 / `least` of what they were or less, and their errors.

    By bits: an estimate that isn't negative, and its standard error. What a finer rounding loses is less (a quarter, to
    second order), so where estimates say otherwise it is chance. Isotonic regression of log estimate + bits log `least`
    by pooling adjacent violators (Ayer et al. 1955), each weighed by the inverse square of its relative error; errors
    stay. Estimates that fall as they are stay as they are.
    """
    widths = sorted(estimates)
    largest = max((estimates[bits][0] for bits in widths), default=0.0)
    if largest == 0:
        return dict(estimates)
    blocks: list[tuple[float, float, list[int]]] = []  # mean, weight, widths
    for bits in widths:
        value, error = estimates[bits]
        relative = min(max(error / value, _EXACT), 1 / _EXACT) if value > 0 else 1.0
        mean = math.log(max(value, _NOTHING * largest)) + bits * math.log(least)
        weight, pooled = relative**-2, [bits]
        while blocks and blocks[-1][0] < mean:
            before, heavy, earlier = blocks.pop()
            mean = (heavy * before + weight * mean) / (heavy + weight)
            weight, pooled = heavy + weight, earlier + pooled
        blocks.append((mean, weight, pooled))
    found = dict(estimates)
    for mean, _, pooled in blocks:
        if len(pooled) > 1:
            found |= {bits: (math.exp(mean - bits * math.log(least)), estimates[bits][1]) for bits in pooled}
    return found
