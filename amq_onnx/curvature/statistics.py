"""Means of repeated draws with their standard errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


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
