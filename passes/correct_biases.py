"""Takes off biases what rounded weights add to the mean of a layer's output."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import Pass


class CorrectBiases(Pass):
    """Subtracts a shift from the bias of each named layer.

    Before:  x -> Conv(W, b) -> y                x -> MatMul(W) -> y -> Add(b) -> z
    After:   x -> Conv(W, b - shift) -> y        x -> MatMul(W) -> y -> Add(b - shift) -> z

    A layer without a bias gets one. The result has a name of its own, so that another layer's use of b stays, and a
    second run, which finds that name, changes nothing.

    shifts: by the layer's output, float32 [channels]. stem: what names made here start with.
    """

    def __init__(self, shifts: Mapping[str, NDArray[np.float32]], stem: str = "amq_") -> None:
        self.shifts = shifts
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class. Raises ModelError for a layer that the graph doesn't have."""
        taken = set(graph.tensors())
        prefix = f"{self.stem}m"
        free = (f"{prefix}{number}" for number in count())
        if any(name.startswith(prefix) and name[len(prefix) :].isdigit() for name in taken):
            return False
        producers = {output.name: node for node in graph.nodes for output in node.outputs}
        for name, shift in self.shifts.items():
            if name not in producers:
                raise ModelError(f"the plan corrects layer '{name}', which the graph doesn't have")
            node, position = producers[name], 2
            if node.op == "MatMul":
                node = node.outputs[0].outputs[0]
                position = next(index for index, read in enumerate(node.inputs) if isinstance(read, gs.Constant))
            held = node.inputs[position].values if len(node.inputs) > position else np.zeros(1, np.float32)
            corrected = (held.astype(np.float64) - shift).astype(np.float32)
            bias = gs.Constant(next(free), corrected)
            if len(node.inputs) > position:
                node.inputs[position] = bias
            else:
                node.inputs.append(bias)
        return bool(self.shifts)
