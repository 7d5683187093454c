"""Measures the sensitivity table of a prepared model on calibration data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from amq_onnx.calibration import Calibration, Progress, calibrate
from amq_onnx.curvature.statistics import shrunk
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import fingerprint
from amq_onnx.model.heads import Head, find_heads
from amq_onnx.quantizer.activation_ranges import activation_encoding, activation_range
from amq_onnx.quantizer.encoding import RangeMethod
from amq_onnx.quantizer.weight_ranges import WeightEncodings, weight_encodings
from amq_onnx.rewriting import Prepared
from amq_onnx.sensitivity import ActivationRow, Sensitivity, WeightRow, six_digits
from amq_onnx.traces import Method, Trace, Traces, losses_for, measure_traces, weigh_histograms

# Samples on which the bins of activations are weighed: a bin sums thousands of elements of each.
_RANGE_SAMPLES = 128


@dataclass(frozen=True)
class SensitivityOptions:
    """How sensitivity is measured.

    method: `gauss-newton` (label-free) or `hessian` (labels). relative_error: asked of every trace.
    samples: how many of the calibration samples curvature is measured on; ranges always see all. correct_biases:
    measure what biases need to make up for the mean error of rounded weights. channels: keep traces and errors of each
    output channel, so that widths can be chosen for each.
    """

    method: Method = "gauss-newton"
    loss: str = "auto"
    ranges: RangeMethod = "curvature"
    relative_error: float = 0.05
    max_probes: int = 128
    samples: int = 256
    seed: int = 0
    device: str = "cpu"
    correct_biases: bool = True
    channels: bool = False


def measure_sensitivity(
    prepared: Prepared,
    data: Dataset,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int] | None,
    options: SensitivityOptions | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """The table of every site at the asked widths, from one pass for ranges and a few for curvature."""
    prepared.require_weights()
    options = options or SensitivityOptions()
    heads, left_out = find_heads(prepared.model, options.loss)
    executor = Executor(prepared.model, device=options.device)
    activations = [site.name for site in prepared.sites.activations] if activation_bits else []
    layers = prepared.layers if options.correct_biases else ()
    seen = calibrate(executor, data, activations, [head.tensor for head in heads], layers, progress)

    def measured() -> tuple[dict[str, dict[int, tuple[float, float]]], Traces]:
        return _ranges_and_traces(executor, data, prepared, seen, heads, activation_bits or (), options, progress)

    ranges, traces = measured()
    if options.loss == "auto" and not any(trace.trace for trace in traces.weights.values()):
        # Scores so far apart that softmax is 0 and 1 to the last bit have no curvature, as in networks with random
        # weights: every plan would look as good as any other.
        heads = [replace(head, loss="squared", why="softmax or sigmoid is saturated on all samples") for head in heads]
        ranges, traces = measured()
    unreached = _unreached(traces)
    sites = prepared.sites.without(unreached)
    weights = {}
    for number, site in enumerate(sites.weights):
        found = weight_encodings(prepared.weight(site.name), site.axis, weight_bits, options.ranges)
        trace = traces.weights[site.name]
        errors = {bits: found.squared_error(bits) for bits in sorted(found.errors)}
        row = WeightRow(site.shape, trace.trace, trace.error, errors)
        weights[site.name] = _with_channels(row, trace, found) if options.channels and site.axis is not None else row
        if progress is not None:
            progress("scales of weights", number + 1, len(sites.weights))
    rows = {}
    for name in activations:
        trace = traces.activations[name]
        perturbation = {bits: value for bits, (value, _) in trace.perturbation.items()}
        rows[name] = ActivationRow(trace.elements, trace.trace, trace.error, ranges[name], perturbation)
    return Sensitivity(
        model=fingerprint(prepared.model),
        method=options.method,
        loss={head.tensor: f"{head.loss}: {head.why}" for head in heads}
        | {name: f"left out: {reason}" for name, reason in left_out.items()},
        samples=traces.samples,
        probes=traces.probes,
        converged=traces.converged,
        seed=options.seed,
        ranges=options.ranges,
        weights=weights,
        activations=rows,
        left_float=sites.left_float,
        expected_inputs=seen.expected_inputs,
    )


def _with_channels(row: WeightRow, trace: Trace, found: WeightEncodings) -> WeightRow:
    count = len(next(iter(found.errors.values())))
    traces = np.full(count, row.trace / count)
    if trace.channels is not None:
        traces = shrunk(trace.channels, trace.channel_variance)
    errors = {bits: six_digits(error) for bits, error in found.errors.items()}
    return replace(row, channel_trace=six_digits(traces), channel_error=errors)


def _unreached(traces: Traces) -> dict[str, str]:
    """Weights of which nothing is known: a branch that no sample takes, a gate that is shut on all of them.

    A zero trace would make them look free, and the narrowest width would be theirs.
    """
    known = any(trace.trace for trace in traces.weights.values())
    reason = "no output depends on it on the calibration data (a branch never taken, a gate always shut)"
    return {name: reason for name, trace in traces.weights.items() if known and trace.trace == 0}


def _ranges_and_traces(
    executor: Executor,
    data: Dataset,
    prepared: Prepared,
    seen: Calibration,
    heads: Sequence[Head],
    activation_bits: Sequence[int],
    options: SensitivityOptions,
    progress: Progress | None,
) -> tuple[dict[str, dict[int, tuple[float, float]]], Traces]:
    """Ranges of activations by width, and all traces with the perturbation that those ranges make."""
    losses = losses_for(heads, seen.mean_square)
    if options.ranges == "curvature" and seen.histograms:
        weigh_histograms(
            executor,
            data.first(min(options.samples, _RANGE_SAMPLES)),
            seen.histograms,
            heads,
            losses,
            batch_size=seen.curvature_batch_size(),
            seed=options.seed,
            progress=progress,
        )
    ranges = {
        name: {bits: activation_range(histogram, bits, options.ranges) for bits in activation_bits}
        for name, histogram in seen.histograms.items()
    }
    encodings = {
        name: {bits: activation_encoding(*ends, bits) for bits, ends in by_bits.items()}
        for name, by_bits in ranges.items()
    }
    traces = measure_traces(
        executor,
        data.first(options.samples),
        {site.name: site.axis for site in prepared.sites.weights},
        encodings,
        heads,
        losses,
        method=options.method,
        layers=prepared.layers,
        expected_inputs=seen.expected_inputs,
        relative_error=options.relative_error,
        max_probes=options.max_probes,
        batch_size=seen.curvature_batch_size(),
        seed=options.seed,
        progress=progress,
    )
    return ranges, traces
