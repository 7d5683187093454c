"""Puts channels that are places of an image in their places, as rows of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.new_nodes import NewNodes


def interleaved(inside: gs.Tensor, strides: Sequence[int], channels: int, add: NewNodes) -> gs.Variable:
    """The places [n, s .. o, h, ..] of `inside` in their order, [n, s h, .., o]."""
    rank = len(strides)
    places = add("Transpose", [inside], perm=[0, *range(2, rank + 2), 1])
    apart = add("Reshape", [places, add.numbers(*[0] * rank, -1, *strides[:-1], strides[-1] * channels)])
    if rank > 1:
        pairs = [place for number in range(1, rank) for place in (number, rank + number)]
        apart = add("Transpose", [apart], perm=[0, *pairs, rank, 2 * rank])
    sizes = add("Mul", [add("Shape", [places], np.int64), add.numbers(1, *strides, 1)], np.int64)
    sizes = add("Div", [sizes, add.numbers(*[1] * (rank + 1), math.prod(strides))], np.int64)
    return add("Reshape", [apart, sizes])
