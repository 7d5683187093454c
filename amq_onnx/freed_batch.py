"""Runs models of a fixed batch on any number of samples, where their graphs allow it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from amq_onnx.calibration import tensors
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import Batch, Dataset

# Squared error, relative to the square of what is expected, up to which outputs are the same: rounding may differ, and
# with it a few codes.
_CLOSE = 0.01


def freed(data: Dataset, executors: Sequence[Executor]) -> Dataset:
    """The same data in batches of any size, if that is all the same to the graphs; else as they are.

    A model exported for one sample at a time would be run on one at a time, which is slow, and learn from one at a
    time. Most such graphs, but for their declared inputs, compute each sample on its own. Whether these do is tried on
    two batches: outputs must be those of both batches run alone, and of the first sample.
    """
    size = data.fixed_batch()
    if size is None or any(spec.sample_axis not in (0, None) for spec in data.specs):
        return data
    specs = tuple(
        spec if spec.sample_axis is None else replace(spec, shape=(None, *spec.shape[1:])) for spec in data.specs
    )
    free = Dataset(data.source, specs, data.origin, data.limit)
    alone = list(data.first(2 * size).batches(size))
    if len(alone) < 2:
        return data
    together, single = next(free.batches(2 * size)), next(free.batches(1))
    return free if all(_same(executor, alone, together, single) for executor in executors) else data


def _same(executor: Executor, alone: Sequence[Batch], together: Batch, single: Batch) -> bool:
    with torch.inference_mode():
        wanted = [executor.run(tensors(batch, executor)) for batch in alone]
        try:
            both, first = (executor.run(tensors(batch, executor)) for batch in (together, single))
        except Exception:  # whatever an operator makes of sizes that don't go together
            return False
    joined = {name: _joined([found[name] for found in wanted]) for name in executor.outputs}
    return _close(both, joined) and _close(first, {name: value[:1] for name, value in joined.items()})


def _joined(values: Sequence[Tensor]) -> Tensor:
    """Along the samples; nothing where no dimension counts them."""
    if any(not isinstance(value, Tensor) or not value.ndim for value in values):
        return torch.ones(0)
    return torch.cat(list(values))


def _close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> bool:
    for name, value in wanted.items():
        if not isinstance(found[name], Tensor) or found[name].shape != value.shape:
            return False
        error = (found[name].double() - value.double()).square().sum()
        if not error <= _CLOSE * value.double().square().sum():
            return False
    return True
