"""Numbers that nodes of a graph read as shapes, bounds and axes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs


class Numbers:
    """Constants of whole numbers, int64 [n], each made once for all that read it. names: where new names come from."""

    def __init__(self, names: Iterator[str]) -> None:
        self.names = names
        self._made: dict[tuple[int, ...], gs.Constant] = {}

    def __call__(self, *values: int) -> gs.Constant:
        """The constant that holds `values`."""
        if values not in self._made:
            self._made[values] = gs.Constant(next(self.names), np.array(values, np.int64))
        return self._made[values]
