"""Latency of two models, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Median seconds of a run of each model, and how many runs of each there were."""

    first: float
    second: float
    runs: int

    @property
    def ratio(self) -> float:
        """Second over first."""
        return self.second / self.first


def alternate(
    first: Callable[[], object],
    second: Callable[[], object],
    *,
    seconds: float = 4.0,
    least_runs: int = 5,
    most_runs: int = 100,
) -> Latency:
    """Run both in turns, so that a noisy machine slows both alike, for about `seconds`."""
    first()
    second()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while len(times[0]) < least_runs or (time.perf_counter() < end and len(times[0]) < most_runs):
        for run, taken in zip((first, second), times, strict=True):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
    return Latency(statistics.median(times[0]), statistics.median(times[1]), len(times[0]))
