"""Seconds that exact allocation takes, on made-up instances shaped like real ones. Prints one line each."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import numpy as np

from amq_onnx.allocation import Allocation, Problem, frontier, smallest, solve

WIDTHS = range(2, 9)
_OF_BUDGETS = np.linspace(0.05, 0.95, 20)


def made_up(weights: int, activations: int, seed: int, *, coupled: bool = False, charges: bool = False) -> Problem:
    """Weight sites of 2k to 2.4M elements and activation sites, 7 widths each.

    Losses fall like 4**-bits times a sensitivity that spreads over 6 decades, with noise enough to make some
    sites neither convex nor monotone. Coupled: the weight sites have a second cost too.
    """
    rng = np.random.default_rng(seed)
    loss: list[list[float]] = []
    size: list[list[int]] = []
    second: list[list[int]] = []
    label: list[list[int]] = []
    for site in range(weights + activations):
        elements = int(np.exp(rng.uniform(np.log(2_000), np.log(2_400_000))))
        channels = int(rng.integers(16, 2048))
        sensitivity = 10.0 ** rng.uniform(-6, 0)
        loss.append([float(sensitivity * 4.0**-b * rng.lognormal(0, 0.5)) for b in WIDTHS])
        if site < weights:
            size.append([-(-elements * b // 8) + 4 * channels for b in WIDTHS])
            work = int(elements * np.exp(rng.uniform(0, 4)))
            second.append([work * b if coupled else 0 for b in WIDTHS])
            label.append(list(WIDTHS))
        else:
            size.append([0] * len(WIDTHS))
            second.append([elements * b for b in WIDTHS])
            label.append([-1] * len(WIDTHS))
    return Problem(loss, size, second, label, {b: 16 * 2 ** min(b, 4) + 40 for b in WIDTHS} if charges else {})


def budgets_of(costs: Sequence[Sequence[int]], part: float) -> int:
    """The budget this part of the way from the least to the most."""
    low, high = sum(map(min, costs)), sum(map(max, costs))
    return low + int(part * (high - low))


def worst(problem: Problem, second_part: float | None, name: str) -> None:
    assert problem.second is not None
    second = None if second_part is None else budgets_of(problem.second, second_part)
    low, high = smallest(problem, second), sum(map(max, problem.size))
    seconds = []
    for part in _OF_BUDGETS:
        begin = time.perf_counter()
        solve(problem, low + int(part * (high - low)), second)
        seconds.append(time.perf_counter() - begin)
    print(
        f"{name}: worst {max(seconds):.3f} s, mean {np.mean(seconds):.3f} s of {len(seconds)} budgets",
        flush=True,
    )


def clocked(name: str, call: Callable[[], Sequence[Allocation]]) -> None:
    begin = time.perf_counter()
    result = call()
    print(f"{name}: {time.perf_counter() - begin:.3f} s, {len(result)} points", flush=True)


def channels(count: int) -> Problem:
    """Output channels as sites of their own, of 9 to 4,500 weights each."""
    rng = np.random.default_rng(4)
    widths = np.array(WIDTHS)
    size = -(-9 * rng.integers(1, 500, (count, 1)) * widths // 8)
    return Problem((10.0 ** rng.uniform(-6, 0, (count, 1)) * 4.0**-widths).tolist(), size.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="20,000 sites too")
    large = parser.parse_args().large
    like = made_up(54, 72, 0)
    worst(like, None, "ResNet50-like, one budget")
    worst(like, 0.4, "ResNet50-like, two budgets")
    coupled = made_up(54, 72, 1, coupled=True)
    worst(coupled, 0.3, "ResNet50-like, two budgets that share sites")
    charged = made_up(54, 72, 0, charges=True)
    worst(charged, None, "ResNet50-like, charges")
    worst(charged, 0.4, "ResNet50-like, charges, two budgets")
    clocked("ResNet50-like, frontier", lambda: frontier(like))
    clocked("ResNet50-like, frontier, second budget", lambda: frontier(like, second_budget=second_of(like)))
    clocked("ResNet50-like, frontier, charges", lambda: frontier(charged))
    thousand = made_up(1000, 0, 2)
    worst(thousand, None, "1,000 sites, one budget")
    worst(made_up(600, 400, 2), 0.4, "1,000 sites, two budgets")
    worst(made_up(1000, 0, 2, coupled=True), 0.3, "1,000 sites, two budgets that share sites")
    worst(made_up(1000, 0, 2, charges=True), None, "1,000 sites, charges")
    clocked("20,000 channels, frontier", lambda: frontier(channels(20_000), points=50))
    if large:
        worst(made_up(20_000, 0, 3), None, "20,000 sites, one budget")
        worst(made_up(12_000, 8_000, 3), 0.4, "20,000 sites, two budgets")
        worst(made_up(20_000, 0, 3, coupled=True), 0.3, "20,000 sites, two budgets that share sites")


def second_of(problem: Problem) -> int:
    assert problem.second is not None
    return budgets_of(problem.second, 0.4)


if __name__ == "__main__":
    main()
