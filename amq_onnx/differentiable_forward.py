"""One forward pass of the graph, through which all that is asked for can be differentiated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.heads import Head


class DifferentiableForward:
    """Runs the graph so that scores and activations are all in one autograd graph.

    Float inputs take part in it, so that every activation behind them can be differentiated. What is computed from
    integer inputs alone (embedded tokens, a one-hot code) hangs on nothing: such activations are computed first and
    handed in as leaves, in the graph's order, as few as make all others hang on something.
    """

    def __init__(
        self, executor: Executor, heads: Sequence[Head], activations: Sequence[str], others: Sequence[str] = ()
    ) -> None:
        self.executor = executor
        self.activations = list(activations)
        self.names = list(dict.fromkeys([*(head.tensor for head in heads), *activations, *others]))
        self.roots: list[str] = []

    def __call__(self, inputs: dict[str, Tensor], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name: scores, activations and what else was asked for, of one batch."""
        feeds = {name: value.requires_grad_() if value.is_floating_point() else value for name, value in inputs.items()}
        given: dict[str, Tensor] = {**feeds, **leaves}
        for name in self.roots:
            given[name] = self._leaf(name, given)
        while True:
            found = self.executor.run(given, self.names)
            loose = next((name for name in self.activations if not found[name].requires_grad), None)
            if loose is None:
                return found
            self.roots.append(loose)
            given[loose] = self._leaf(loose, given)

    def _leaf(self, name: str, given: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.executor.run(given, [name])[name].detach().requires_grad_()
