"""What is to be decided: the sites, the options of each, their losses and costs; and what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from math import fsum
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

MAX_OPTIONS = 256  # the search packs an option index into eight bits, or four where they do
MAX_LABELS = 8
_MAX_TOTAL = 1 << 52  # sums of costs are exact in int64 and in floating point


class Infeasible(ValueError):
    """No choice of options meets a budget.

    Attributes:
        constraint: the budget that can't be met, "size" or "second".
        smallest: the least value of that sum that is possible (for "size": under the second budget, if one
            was given, and with charges).
        budget: what was asked for.
    """

    def __init__(self, constraint: Literal["size", "second"], smallest: int, budget: int) -> None:
        super().__init__(f"the smallest possible {constraint} is {smallest}, the budget is {budget}")
        self.constraint: Literal["size", "second"] = constraint
        self.smallest = smallest
        self.budget = budget


@dataclass(frozen=True)
class Allocation:
    """One option per site.

    Attributes:
        choice: option index of each site, in the order of the problem.
        loss: sum of the chosen losses (correctly rounded).
        size: sum of the chosen sizes plus the charges of the labels in use, bytes.
        second: sum of the chosen second costs.
    """

    choice: tuple[int, ...]
    loss: float
    size: int
    second: int


@dataclass(frozen=True)
class Problem:
    """A multiple-choice knapsack problem: exactly one option per site, least total loss, costs in budgets.

    Immutable and validated; the sites may have different numbers of options (1 to 256).

    Attributes:
        loss: loss[i][j] >= 0 of option j at site i; finite, otherwise any shape (ties, bumps, zeros).
        size: size[i][j] >= 0, whole bytes.
        second: second[i][j] >= 0, a second whole cost (say elements x bits of an activation); default 0.
        label: label[i][j], the width class that the option belongs to, -1 for none; default none.
        charge: bytes paid once for each label that at least one chosen option carries; a label that is
            missing here is free. At most 8 labels with a charge.

    Raises:
        ValueError: ragged shapes that differ between fields, no options at a site or more than 256, a loss
            that isn't finite or is negative, a cost that isn't a whole number or is negative, sums beyond
            2**52, or more than 8 labels with a charge.
    """

    loss: Sequence[Sequence[float]]
    size: Sequence[Sequence[int]]
    second: Sequence[Sequence[int]] | None = None
    label: Sequence[Sequence[int]] | None = None
    charge: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        loss = tuple(tuple(map(float, row)) for row in self.loss)
        object.__setattr__(self, "loss", loss)
        object.__setattr__(self, "size", _whole("size", self.size))
        if self.second is not None:
            object.__setattr__(self, "second", _whole("second", self.second))
        if self.label is not None:
            object.__setattr__(self, "label", _whole("label", self.label))
        object.__setattr__(self, "charge", MappingProxyType(dict(self.charge)))
        counts = [len(row) for row in loss]
        if any(not 1 <= count <= MAX_OPTIONS for count in counts):
            raise ValueError(f"every site needs 1 to {MAX_OPTIONS} options")
        for name in ("size", "second", "label"):
            rows: Sequence[Sequence[int]] | None = getattr(self, name)
            if rows is not None and [len(row) for row in rows] != counts:
                raise ValueError(f"{name} has another shape than loss")
        flat = np.fromiter(chain.from_iterable(loss), np.float64)
        if not np.all(np.isfinite(flat)) or np.any(flat < 0):
            raise ValueError("losses must be finite and not negative")
        if not np.isfinite(flat.sum()):
            raise ValueError("the losses are too large to be added")
        for name in ("size", "second"):
            costs: Sequence[Sequence[int]] = getattr(self, name) or ()
            if any(min(row) < 0 for row in costs):
                raise ValueError(f"{name} must not be negative")
            if sum(max(row) for row in costs) + sum(abs(c) for c in self.charge.values()) > _MAX_TOTAL:
                raise ValueError(f"{name} adds up to more than 2**52")
        for value in self.charge.values():
            if isinstance(value, bool) or int(value) != value or value < 0:
                raise ValueError("charges must be whole and not negative")
        if len(self.charged) > MAX_LABELS:
            raise ValueError(f"at most {MAX_LABELS} labels may carry a charge")

    @cached_property
    def charged(self) -> tuple[int, ...]:
        """The labels in use that cost something, in rising order."""
        if self.label is None:
            return ()
        used = set(chain.from_iterable(self.label)) - {-1}
        return tuple(sorted(name for name in used if self.charge.get(name, 0) > 0))

    @cached_property
    def table(self) -> Table:
        """The same in padded arrays, costs counted from the least of each site."""
        there = _there(np.fromiter((len(row) for row in self.loss), np.int64, len(self.loss)))
        loss = np.full(there.shape, np.inf)
        loss[there] = np.fromiter(chain.from_iterable(self.loss), np.float64)
        far = int(np.iinfo(np.int64).max)
        size = _padded(self.size, there, far)
        second = np.where(there, 0, far) if self.second is None else _padded(self.second, there, far)
        label = np.full(there.shape, -1) if self.label is None else _padded(self.label, there, -1)
        least = loss.min(axis=1, initial=np.inf)
        size_floor = size.min(axis=1, initial=far)
        second_floor = second.min(axis=1, initial=far)
        return Table(
            regret=np.where(there, loss - least[:, None], np.inf),
            size=np.where(there, size - size_floor[:, None], 0),
            second=np.where(there, second - second_floor[:, None], 0),
            label=label,
            size_floor=int(size_floor.sum()),
            second_floor=int(second_floor.sum()),
        )

    def allocation(self, choice: Sequence[int]) -> Allocation:
        """The sums of a choice (an option index per site), charges included."""
        picked = tuple(int(j) for j in choice)
        second = self.second
        size = sum(row[j] for row, j in zip(self.size, picked, strict=True))
        if self.label is not None and self.charged:
            used = {row[j] for row, j in zip(self.label, picked, strict=True)}
            size += sum(int(self.charge[name]) for name in self.charged if name in used)
        return Allocation(
            choice=picked,
            loss=fsum(row[j] for row, j in zip(self.loss, picked, strict=True)),
            size=size,
            second=0 if second is None else sum(row[j] for row, j in zip(second, picked, strict=True)),
        )


@dataclass(frozen=True)
class Table:
    """A problem in arrays of shape [sites, widest site].

    Attributes:
        regret: loss above the least of the site; inf where the site has no such option.
        size: bytes above the least of the site (0 where there is no option).
        second: second cost above the least of the site (0 where there is no option).
        label: width class, -1 for none.
        size_floor: sum of the least sizes, bytes.
        second_floor: sum of the least second costs.
    """

    regret: Floats
    size: Ints
    second: Ints
    label: Ints
    size_floor: int
    second_floor: int


def _whole(name: str, rows: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    result = tuple(tuple(map(int, row)) for row in rows)
    if any(exact != given for a, b in zip(result, rows, strict=True) for exact, given in zip(a, b, strict=True)):
        raise ValueError(f"{name} must be whole numbers")
    return result


def _there(counts: Ints) -> Mask:
    result: Mask = np.arange(counts.max(initial=0)) < counts[:, None]
    return result


def _padded(rows: Sequence[Sequence[int]], there: Mask, fill: int) -> Ints:
    result = np.full(there.shape, fill, np.int64)
    result[there] = np.fromiter(chain.from_iterable(rows), np.int64)
    return result
