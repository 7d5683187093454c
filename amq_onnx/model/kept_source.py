"""Data that are small enough to stay in memory once they were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# 400 ImageNet images as float32: decoding those again takes seconds in each of some ten passes.
_KEPT_BYTES = 2**28


class KeptSource:
    """A source of a Dataset that is read again only where what it yields is too large to keep.

    Kept is what a whole pass yielded, if it was nothing but arrays of numbers, of `most` bytes or fewer in all; copies,
    since a script may fill one buffer again and again.
    """

    def __init__(self, source: Callable[[], Iterable[Any]], most: int = _KEPT_BYTES) -> None:
        self.source = source
        self.most = most
        self.kept: list[dict[str, NDArray[Any]]] | None = None

    def __call__(self) -> Iterator[Any]:
        """One pass."""
        if self.kept is not None:
            yield from self.kept
            return
        held: list[dict[str, NDArray[Any]]] | None = []
        left = self.most
        for given in self.source():
            if held is not None:
                size = _bytes(given)
                if size is None or size > left:
                    held = None
                else:
                    left -= size
                    held.append({name: array.copy() for name, array in given.items()})
            yield given
        self.kept = held


def _bytes(given: Any) -> int | None:
    """The memory that one dict takes; None of anything else than arrays of numbers by name."""
    if not isinstance(given, Mapping):
        return None
    if not all(isinstance(array, np.ndarray) and array.dtype != object for array in given.values()):
        return None
    return sum(int(array.nbytes) for array in given.values())
