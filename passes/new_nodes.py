"""Nodes that a pass adds to a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import onnx_graphsurgeon as gs

from amq_onnx.passes.numbers import Numbers


class NewNodes:
    """Adds nodes of one output to `graph`.

    names: where the names of what they make come from. numbers: the whole numbers that they read.
    """

    def __init__(self, graph: gs.Graph, names: Iterator[str]) -> None:
        self.graph = graph
        self.names = names
        self.numbers = Numbers(names)
        self._scalars: dict[tuple[float, np.dtype[np.generic]], gs.Constant] = {}

    def __call__(
        self, operator: str, inputs: Sequence[gs.Tensor], dtype: npt.DTypeLike = np.float32, **attributes: object
    ) -> gs.Variable:
        """What a new node makes of `inputs`, a tensor of `dtype`."""
        made = gs.Variable(next(self.names), dtype)
        self.graph.nodes.append(gs.Node(operator, "", attributes, list(inputs), [made]))
        return made

    def scalar(self, value: float, dtype: npt.DTypeLike = np.float32) -> gs.Constant:
        """A constant without axes, made once for all that read it."""
        key = value, np.dtype(dtype)
        if key not in self._scalars:
            self._scalars[key] = gs.Constant(next(self.names), np.array(value, dtype))
        return self._scalars[key]

    def repeated(self, end: gs.Tensor, times: int, dtype: npt.DTypeLike) -> gs.Variable:
        """0, .., 0, 1, .., 1, ..: numbers up to `end`, that many in all, each so many times."""
        numbers = self("Range", [self.scalar(0, dtype), end, self.scalar(1, dtype)], dtype)
        return self("Div", [numbers, self.scalar(times, dtype)], dtype)

    def unbounded(self, tensor: gs.Tensor) -> gs.Variable:
        """`tensor` behind a Clip that bounds nothing: onnxruntime doesn't see that it was dequantized, and makes
        neither an integer kernel nor a DequantizeLinear of its own for each node that reads it."""
        made = self("Clip", [tensor, self.scalar(float(np.finfo(np.float32).min))])
        made.shape = tensor.shape
        return made
