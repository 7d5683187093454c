"""The smallest file whose measured drop is within a bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, isnan, sqrt
from typing import Generic, Protocol, TypeVar

# Sizes whose ratio is below this are as good as each other: a plan's drop is no smoother than that.
_RESOLUTION = 1.01
# Sizes looked at where the largest file fails, before the search gives up.
_RETRIES = 3
# Steps below the smallest file found so far: the drop isn't quite monotone in the size.
_NEIGHBOURS = 3
MOST_EVALUATIONS = 16


class Sized(Protocol):
    """Something built for a budget, and the bytes that it really has."""

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        ...


Candidate = TypeVar("Candidate", bound=Sized)


@dataclass(frozen=True)
class Trial:
    """A file that was evaluated: its bytes, and how far the metric fell with it."""

    bytes: int
    drop: float


@dataclass(frozen=True, eq=False)
class Found(Generic[Candidate]):
    """What a search found: the smallest file within the bound, None where there was none; all trials as they came.

    best: the file of least drop.
    """

    smallest: Candidate | None
    best: Candidate
    trials: tuple[Trial, ...]


def smallest_within(
    build: Callable[[int], Candidate], drop_of: Callable[[Candidate], float], most: float, least: int, budget: int
) -> Found[Candidate]:
    """Search the sizes from `least` to that of the file that `build(budget)` gives, which is the largest.

    The largest file comes first, then bisection (of the logarithm of the bytes) until failing and passing sizes are
    1 % apart, then the neighbours below the smallest that passed: each that passes too starts them anew. Where the
    largest file fails, a few smaller ones are tried. At most MOST_EVALUATIONS files are built and evaluated, and what
    is returned was itself measured within `most`.

    build: the best candidate of no more than so many bytes, `least` or more. drop_of: its measured drop; NaN fails.
    """
    search = _Search(build, drop_of, most)
    if not search.passes(budget):
        top = search.largest
        steps = range(_RETRIES, 0, -1)
        if not any(search.passes(int(least + (top - least) * step / (_RETRIES + 1))) for step in steps):
            return search.found()
    failing = least - 1
    while search.passing > max(least, failing * _RESOLUTION) and search.left > _NEIGHBOURS:
        middle = max(least, int(sqrt(max(1, failing) * search.passing)))
        tried = min(middle, search.passing - 1)
        if not search.passes(tried):
            failing = tried  # and so would all sizes down to the file's own: their optimum is the same
    step = 0
    while step < _NEIGHBOURS and search.left and search.passing > least:
        step += 1
        if search.passes(max(least, min(search.passing - 1, int(search.passing / _RESOLUTION ** (2 * step - 1))))):
            step = 0
    return search.found()


class _Search(Generic[Candidate]):
    """Builds and evaluates, each file once."""

    def __init__(self, build: Callable[[int], Candidate], drop_of: Callable[[Candidate], float], most: float) -> None:
        self.build = build
        self.drop_of = drop_of
        self.most = most
        self.left = MOST_EVALUATIONS
        self.trials: dict[int, Trial] = {}
        self.smallest: Candidate | None = None
        self.best: Candidate | None = None
        self.least_drop = inf
        self.largest = 0

    @property
    def passing(self) -> int:
        """Bytes of the smallest file that passed."""
        assert self.smallest is not None
        return self.smallest.bytes

    def passes(self, budget: int) -> bool:
        """Whether the file for `budget` is within the bound; it's remembered where it's the smallest or the best."""
        self.left -= 1
        candidate = self.build(budget)
        self.largest = max(self.largest, candidate.bytes)
        trial = self.trials.get(candidate.bytes)
        if trial is None:
            trial = self.trials[candidate.bytes] = Trial(candidate.bytes, self.drop_of(candidate))
        passed = trial.drop <= self.most
        if passed and (self.smallest is None or candidate.bytes < self.smallest.bytes):
            self.smallest = candidate
        drop = inf if isnan(trial.drop) else trial.drop
        if self.best is None or drop < self.least_drop:
            self.best, self.least_drop = candidate, drop
        return passed

    def found(self) -> Found[Candidate]:
        assert self.best is not None
        return Found(self.smallest, self.best, tuple(self.trials.values()))
