"""A node to be differentiated, and how the parts of one are drawn.

Values lie on a grid that keeps its distance from the kinks of the operators: they are different from each other, and
no multiple of 0.05.
"""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
from hypothesis import strategies as st


@dataclass(frozen=True)
class Leaf:
    """A float input to differentiate; domain: any, nonzero, positive, unit (inside -1..1), above (over 1), small."""

    shape: tuple[int, ...]
    domain: str = "any"

    def values(self, rng):
        count = prod(self.shape)
        grid = (rng.permutation(count) - count // 2 + 0.37) * 0.05
        value = {
            "any": grid,
            "nonzero": np.sign(grid) * (0.5 + np.abs(grid)),
            "positive": 0.5 + np.abs(grid),
            "unit": grid / (0.05 * count + 0.5),
            "above": 1.2 + np.abs(grid),
            "small": grid / 2,
        }[self.domain]
        return value.reshape(self.shape)


@dataclass(frozen=True)
class Near(Leaf):
    """Values around `middle`, less than `spread` away from it, for inputs that are positions."""

    middle: float = 0.0
    spread: float = 0.1

    def values(self, rng):
        return self.middle + rng.uniform(-self.spread, self.spread, self.shape)


@dataclass(frozen=True)
class Case:
    """A node: inputs are leaves, arrays that stay as they are, or None where left out."""

    inputs: list[Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 24


SIDE = st.integers(1, 4)


SHAPE = st.lists(SIDE, min_size=1, max_size=3).map(tuple)


FLAG = st.integers(0, 1)


def any_of(*options):
    return st.sampled_from(options)


def i64(*values):
    return np.array(values, np.int64)


def indices(draw, high, *shape):
    """Integers in -high .. high - 1."""
    count = prod(shape)
    drawn = draw(st.lists(st.integers(-high, high - 1), min_size=count, max_size=count))
    return np.array(drawn, np.int64).reshape(shape)


def axis_of(draw, shape):
    return draw(st.integers(-len(shape), len(shape) - 1))
