"""Data that are small enough to stay in memory once they were read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# 400 ImageNet images as float32: decoding those again takes seconds in each of some ten passes.
_KEPT_BYTES = 2**28


class KeptSource:
    """A source of a Dataset that is read again only for what is too large to keep, or was not read before.

    Most passes stop early: --limit asks for the first samples of a large set, and a measurement for some of these. So
    what a pass yields is kept as it comes, if it is nothing but arrays of numbers, and the next pass goes on behind it;
    once it takes more than `most` bytes, nothing is kept any more. Kept are copies, since a script may fill one buffer
    again and again. The source must yield the same in each pass.
    """

    def __init__(self, source: Callable[[], Iterable[Any]], most: int = _KEPT_BYTES) -> None:
        self.source = source
        self._left = most
        self._kept: list[dict[str, NDArray[Any]]] | None = []
        self._whole = False

    def __call__(self) -> Iterator[Any]:
        """One pass."""
        yielded = 0
        while self._kept is not None and yielded < len(self._kept):
            yielded += 1
            yield self._kept[yielded - 1]
        if self._whole:
            return
        for number, given in enumerate(self.source()):
            if number >= yielded:
                self._keep(number, given)
                yield given
        self._whole = self._kept is not None

    def _keep(self, number: int, given: Any) -> None:
        if self._kept is None or number < len(self._kept):
            return
        size = _bytes(given)
        if size is None or size > self._left:
            self._kept = None
        else:
            self._left -= size
            self._kept.append({name: array.copy() for name, array in given.items()})


def _bytes(given: Any) -> int | None:
    """The memory that one dict takes; None of anything else than arrays of numbers by name."""
    if not isinstance(given, Mapping):
        return None
    if not all(isinstance(array, np.ndarray) and array.dtype != object for array in given.values()):
        return None
    return sum(int(array.nbytes) for array in given.values())
