"""The curvature of the values that activations take, by which their ranges are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from amq_onnx.calibration import Progress, tensors
from amq_onnx.curvature.gauss_newton import probe_gradients
from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.seeds import mixed_seed
from amq_onnx.differentiable_forward import DifferentiableForward
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head
from amq_onnx.quantizer.histogram import StreamingHistogram


def weigh_histograms(
    executor: Executor,
    data: Dataset,
    histograms: Mapping[str, StreamingHistogram],
    heads: Sequence[Head],
    losses: Sequence[Loss],
    *,
    batch_size: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> None:
    """Weigh the bins of each activation's histogram by the curvature of the values in them.

    One Gauss-Newton probe a sample: the square of an element's gradient is an unbiased draw of its diagonal entry
    (see probe_gradients), and a bin sums many. Memory is that of one batch.
    """
    names = list(histograms)
    forward = DifferentiableForward(executor, heads, names)
    samples = 0
    for unit, batch in enumerate(data.batches(batch_size)):
        found = forward(tensors(batch, executor), {})
        scores = [found[head.tensor] for head in heads]
        generator = torch.Generator().manual_seed(mixed_seed(seed, -1, unit))
        gradients = probe_gradients(scores, losses, [found[name] for name in names], generator)
        for name, gradient in zip(names, gradients, strict=True):
            value = found[name].detach().float().cpu().numpy()
            # Not in place: the gradients of what Add and Concat read may be parts of that of what they make.
            histograms[name].weigh(value, gradient.square().float().cpu().numpy())
        samples += data.count(batch)
        if progress is not None:
            progress("curvature of ranges", samples, None)
