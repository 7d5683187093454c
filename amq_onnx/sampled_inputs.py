"""What the weights of each layer are multiplied with, at places drawn at random: moments for the error of its outputs.

A weight of a Conv meets a window of the input, that of a Gemm or MatMul a row. Some windows of each sample are enough:
all those of one image have much in common.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
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
        """Add a batch: the layers' input tensors by name."""
        for layer in self.layers:
            rows = self._rows(layer, found[layer.data].float(), samples)
            self._moments.setdefault(layer.weight, _Moments()).add(rows)

    def result(self) -> dict[str, OutputError]:
        """By weight, what its errors do to the outputs."""
        return {name: moments.error(name in self.centred) for name, moments in self._moments.items()}

    def _rows(self, layer: Layer, data: Tensor, samples: int) -> Tensor:
        """Inputs at random places, [groups, places, elements], the elements in the weight's order."""
        if layer.operator == "Conv":
            node = self.executor.node(layer.output)
            kernel = self.executor.initializers[layer.weight].shape[2:]
            # [N, *places, C, *kernel], a view: only what is drawn is copied.
            seen = windows(node, data, kernel).movedim(1, data.dim() - 1)
            places = seen.shape[: data.dim() - 1]
        else:
            seen = data.t() if layer.transposed else data
            places = seen.shape[:-1]
        count = max(1, int(np.prod(places)))
        drawn = torch.arange(count)
        if count > _PLACES * samples:
            drawn = torch.randint(0, count, (_PLACES * samples,), generator=self._generator)
        # numpy's: torch's imports a package of symbols when it is first called, which takes a second.
        where = np.unravel_index(drawn.numpy(), places)
        rows = seen[tuple(torch.from_numpy(index).to(data.device) for index in where)]
        return rows.reshape(len(rows), layer.groups, -1).movedim(1, 0)


class _Moments:
    """The second moments of one layer's inputs, or some of the inputs where these are less.

    Products and eigenvectors are torch's, which takes a fifth of numpy's time for them with what pip installs.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: Tensor | None = None
        self.products: Tensor | None = None
        self.kept: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add inputs, [groups, places, elements]."""
        if rows.shape[2] > _MOST_ELEMENTS:
            rows = rows[:, : max(0, _MOST_ELEMENTS - self.count)]
            self.kept.append(rows.clone())
        else:
            sums = rows.sum(1, dtype=torch.float64)
            products = torch.bmm(rows.transpose(1, 2), rows).double()
            self.sums = sums if self.sums is None else self.sums + sums
            self.products = products if self.products is None else self.products + products
        self.count += rows.shape[1]

    def error(self, centred: bool) -> OutputError:
        """See OutputError. centred: as if the inputs had no mean."""
        if self.sums is None or self.products is None:
            return OutputError.from_rows(torch.cat(self.kept, 1).cpu().numpy(), centred)
        moments, means = self.products.cpu() / self.count, self.sums.cpu() / self.count
        if centred:
            moments = moments - means[:, :, None] * means[:, None, :]
        values, vectors = torch.linalg.eigh(moments)
        return OutputError.from_spectrum(values.numpy(), vectors.numpy())
