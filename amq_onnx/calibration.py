"""One pass over the data that sees every activation: its range, its size, the scale of the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from amq_onnx.errors import DataError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.expected_inputs import ExpectedInputs
from amq_onnx.model.data import Batch, Dataset
from amq_onnx.model.layers import Layer
from amq_onnx.quantizer.histogram import StreamingHistogram
from amq_onnx.quantizer.output_error import OutputError
from amq_onnx.sampled_inputs import SampledInputs

Progress = Callable[[str, int, int | None], None]
"""Called with what is being done, how many steps are done, and how many there are (None if unknown)."""

# Activations of all sites that one batch may hold, in elements: 64 million floats are 256 MB.
_BATCH_ELEMENTS = 64_000_000
_LARGEST_BATCH = 64
# Elements that keep the cores busy: below this the overhead of each operator counts.
_CURVATURE_ELEMENTS = 600_000
_LARGEST_CURVATURE_BATCH = 8
# Some tensors of a batch are held at once: the activations, what they are changed to, their gradients.
_LOSS_ELEMENTS = 8_000_000
_LARGEST_LOSS_BATCH = 32


@dataclass
class Calibration:
    """What a pass over the data saw.

    histograms: by activation site. elements: by tensor that was looked at, elements of one sample. mean_square: by
    head tensor, E ||output||^2 of a sample. expected_inputs: by layer, see ExpectedInputs. output_errors: by weight,
    see SampledInputs. samples: how many were seen. importance: of each sample, where it was asked for, else 1.
    """

    histograms: dict[str, StreamingHistogram] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    mean_square: dict[str, float] = field(default_factory=dict)
    expected_inputs: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    output_errors: dict[str, OutputError] = field(default_factory=dict)
    samples: int = 0
    importance: torch.Tensor = field(default_factory=lambda: torch.ones(0))

    def batch_size(self) -> int:
        """How many samples fit in the memory meant for the activations of a batch."""
        return _fitting(_BATCH_ELEMENTS, self.elements)

    def loss_batch_size(self) -> int:
        """How many samples a batch should have where each sample's draws are told apart: what fits is for speed."""
        return min(_LARGEST_LOSS_BATCH, _fitting(_LOSS_ELEMENTS, self.elements))

    def curvature_batch_size(self) -> int:
        """How many samples a batch should have for traces of weights.

        Cross terms between the samples of a batch add to the variance of each draw, so batches are as small as
        the overhead of a pass allows.
        """
        return min(_LARGEST_CURVATURE_BATCH, _fitting(_CURVATURE_ELEMENTS, self.elements))


def tensors(batch: Batch, executor: Executor) -> dict[str, torch.Tensor]:
    """The graph's inputs in `batch` (labels left out), on the executor's device."""
    # Arrays cut from an .npz are read-only views, which torch refuses to wrap without a warning.
    return {
        name: torch.from_numpy(np.array(batch[name])).to(executor.device) for name in executor.inputs if name in batch
    }


def calibrate(
    executor: Executor,
    data: Dataset,
    activations: Sequence[str],
    heads: Sequence[str],
    layers: Sequence[Layer] = (),
    progress: Progress | None = None,
    importance: Callable[[Mapping[str, torch.Tensor], int], torch.Tensor] | None = None,
    weighed: Sequence[Layer] = (),
) -> Calibration:
    """Run the float graph once over `data`: the histogram of each of `activations`, the expected inputs of `layers`.

    importance: of each sample, [samples], from the heads' tensors and the number of samples. weighed: layers whose
    output error is wanted, without the means of those in `layers`. Memory is that of one batch, whatever the size of
    the data. Raises DataError, naming the tensor, where an activation is not finite.
    """
    seen = Calibration(histograms={name: StreamingHistogram() for name in activations})
    squares = dict.fromkeys(heads, 0.0)
    importances: list[torch.Tensor] = []
    expected = ExpectedInputs(executor, layers)
    sampled = SampledInputs(executor, weighed, {layer.weight for layer in layers})
    read = [name for name in dict.fromkeys([*expected.names(), *sampled.names()]) if name not in seen.histograms]
    held = [*seen.histograms, *read]
    wanted = list(dict.fromkeys([*held, *heads]))
    # The first sample tells how large the activations are, and so how many samples fit a batch.
    with torch.inference_mode():
        for batch in data.first(1).batches(1):
            found = executor.run(tensors(batch, executor), held)
            count = data.count(batch)
            seen.elements = {name: max(1, tensor.numel() // count) for name, tensor in found.items()}
        for batch in data.batches(seen.batch_size()):
            found = executor.run(tensors(batch, executor), wanted)
            for name in activations:
                try:
                    seen.histograms[name].update(found[name].float().cpu().numpy())
                except ValueError as error:
                    raise DataError(_not_finite(f"activation '{name}'", data, seen)) from error
            for name in read:
                if not found[name].isfinite().all():
                    raise DataError(_not_finite(f"'{name}', which a layer reads,", data, seen))
            expected.update(found, data.count(batch))
            sampled.update(found, data.count(batch))
            for name in heads:
                squares[name] += float(found[name].double().square().sum())
            if importance is not None:
                importances.append(importance(found, data.count(batch)))
            seen.samples += data.count(batch)
            if progress is not None:
                progress("ranges of activations", seen.samples, None)
    seen.importance = torch.cat(importances) if importances else torch.ones(seen.samples)
    seen.expected_inputs = expected.result()
    seen.output_errors = sampled.result()
    seen.mean_square = {name: total / seen.samples for name, total in squares.items()}
    return seen


def _not_finite(what: str, data: Dataset, seen: Calibration) -> str:
    return (
        f"{what} is not finite on {data.origin} (sample {seen.samples} or later): "
        "leave out samples that the float model can't handle"
    )


def _fitting(budget: int, elements: dict[str, int]) -> int:
    return max(1, min(_LARGEST_BATCH, budget // max(1, sum(elements.values()))))
