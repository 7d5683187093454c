"""What the weights of each layer are multiplied with, at places drawn at random: moments for the error of its outputs.

A weight of a Conv meets a window of the input, that of a Gemm or MatMul a row. Some windows of each sample are enough:
all those of one image have much in common.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.executor.interpreter import Executor
from amq_onnx.executor.ops.windows import windows
from amq_onnx.model.layers import Layer
from amq_onnx.quantizer.output_error import OutputError

# Places drawn of each sample.
_PLACES = 4
# Up to this many elements a window, moments are summed; of longer ones this many windows are kept, which is less.
_MOST_ELEMENTS = 1024


class SampledInputs:
    """Running moments by weight.

    layers: those of them with a weight of their own are looked at, but for ConvTranspose, whose outputs meet different
    elements of the weight in turn. centred: weights of layers whose bias makes up for the mean error.
    """

    def __init__(
        self, executor: Executor, layers: Sequence[Layer], centred: Collection[str] = (), seed: int = 0
    ) -> None:
        self.executor = executor
        self.layers = [layer for layer in layers if layer.alone and layer.operator != "ConvTranspose"]
        self.centred = frozenset(centred)
        self._generator = torch.Generator().manual_seed(seed)
        self._moments: dict[str, _Moments] = {}

    def names(self) -> list[str]:
        """Tensors that `update` must be given."""
        return [layer.data for layer in self.layers]

    def update(self, found: dict[str, Tensor], samples: int) -> None:
        """Add a batch: the layers' input tensors by name, first dimension the samples."""
        for layer in self.layers:
            rows = self._rows(layer, found[layer.data].float(), samples)
            self._moments.setdefault(layer.weight, _Moments()).add(rows.cpu().numpy())

    def result(self) -> dict[str, OutputError]:
        """By weight, what its errors do to the outputs."""
        return {name: moments.error(name in self.centred) for name, moments in self._moments.items()}

    def _rows(self, layer: Layer, data: Tensor, samples: int) -> Tensor:
        """Inputs at random places, [groups, places, elements], the elements in the weight's order."""
        node = self.executor.node(layer.output)
        if layer.operator == "Conv":
            kernel = self.executor.initializers[layer.weight].shape[2:]
            # [N, *places, C, *kernel], a view: only what is drawn is copied.
            seen = windows(node, data, kernel).movedim(1, data.dim() - 1)
            places = seen.shape[: data.dim() - 1]
        else:
            seen = data.t() if layer.operator == "Gemm" and node.integer("transA") else data
            places = seen.shape[:-1]
        count = max(1, int(np.prod(places)))
        drawn = torch.arange(count)
        if count > _PLACES * samples:
            drawn = torch.randint(0, count, (_PLACES * samples,), generator=self._generator)
        rows = seen[torch.unravel_index(drawn.to(data.device), places)]
        return rows.reshape(len(rows), layer.groups, -1).movedim(1, 0)


class _Moments:
    """The second moments of one layer's inputs, or some of the inputs where these are less."""

    def __init__(self) -> None:
        self.count = 0
        self.sums: NDArray[np.float64] | None = None
        self.products: NDArray[np.float64] | None = None
        self.kept: list[NDArray[np.float32]] = []

    def add(self, rows: NDArray[np.float32]) -> None:
        """Add inputs, [groups, places, elements]."""
        if rows.shape[2] > _MOST_ELEMENTS:
            rows = rows[:, : max(0, _MOST_ELEMENTS - self.count)]
            self.kept.append(rows.copy())
        else:
            sums = rows.sum(1, dtype=np.float64)
            products = np.matmul(rows.transpose(0, 2, 1), rows).astype(np.float64)
            self.sums = sums if self.sums is None else self.sums + sums
            self.products = products if self.products is None else self.products + products
        self.count += rows.shape[1]

    def error(self, centred: bool) -> OutputError:
        """See OutputError."""
        if self.sums is None or self.products is None:
            return OutputError.from_rows(np.concatenate(self.kept, 1), centred)
        return OutputError.from_moments(self.products / self.count, self.sums / self.count, centred)
