"""Ranges of activations, and the curvature of the values that they take, by which these are chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from amq_onnx.calibration import Calibration, Progress, tensors
from amq_onnx.code_operators import CodeOperators
from amq_onnx.curvature.gauss_newton import probe_gradients
from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.seeds import mixed_seed
from amq_onnx.differentiable_forward import DifferentiableForward
from amq_onnx.executor.interpreter import Executor
from amq_onnx.layout import ordered_alike
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head
from amq_onnx.quantizer.activation_ranges import activation_range, range_of_hard_sigmoid, range_of_shift
from amq_onnx.quantizer.encoding import RangeMethod
from amq_onnx.quantizer.histogram import StreamingHistogram

Ranges = dict[str, dict[int, tuple[float, float]]]
"""The least and the largest value of each activation, by its name and width."""

# Samples on which the bins of activations are weighed: a bin sums thousands of elements of each.
_SAMPLES = 128


def measured_ranges(
    executor: Executor,
    data: Dataset,
    code_operators: CodeOperators,
    seen: Calibration,
    activation_bits: Sequence[int],
    heads: Sequence[Head],
    losses: Sequence[Loss],
    *,
    method: RangeMethod = "curvature",
    samples: int = _SAMPLES,
    seed: int = 0,
    progress: Progress | None = None,
) -> Ranges:
    """Ranges of the activations in `seen`, whose histograms `curvature` weighs first, on no more than `samples`.

    code_operators: float operators that are computed on codes, for which some ranges are better than others.
    """
    histograms = seen.histograms
    if method == "curvature" and histograms:
        weigh_histograms(
            executor,
            data.first(min(samples, _SAMPLES)),
            histograms,
            heads,
            losses,
            batch_size=seen.curvature_batch_size(),
            seed=seed,
            progress=progress,
        )
    ranges = {
        name: {bits: activation_range(histogram, bits, method) for bits in activation_bits}
        for name, histogram in histograms.items()
    }
    for name, (alpha, beta, alone) in code_operators.hard_sigmoids.items():
        for bits, (low, high) in ranges.get(name, {}).items():
            ranges[name][bits] = range_of_hard_sigmoid(low, high, bits, alpha, beta, alone)
    for name, level in code_operators.levels.items():
        for bits, ends in ranges.get(name, {}).items():
            ranges[name][bits] = range_of_shift(histograms[name], *ends, bits, level, method)
    return ranges


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
            value, gradient = ordered_alike(found[name].detach(), gradient)
            # Not in place: the gradients of what Add and Concat read may be parts of that of what they make.
            histograms[name].weigh(value.float().cpu().numpy(), gradient.square().float().cpu().numpy())
        samples += data.count(batch)
        if progress is not None:
            progress("curvature of ranges", samples, None)
