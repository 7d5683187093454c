"""Measures the sensitivity table of a prepared model on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from amq_onnx.calibration import Calibration, Progress, calibrate
from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.statistics import falling, shrunk
from amq_onnx.errors import UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.freed_batch import freed
from amq_onnx.head_losses import losses_for
from amq_onnx.learned_losses import bounded, rounded_weight
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import fingerprint
from amq_onnx.model.heads import LEFT_OUT, Head, find_heads, weighed
from amq_onnx.outweighing import outweighing
from amq_onnx.quantizer.activation_ranges import activation_encoding, mean_squared_error
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.quantizer.held_codes import HeldCodes
from amq_onnx.quantizer.weight_ranges import MOST_BITS_FOR_OUTPUTS, WeightEncodings, weight_encodings
from amq_onnx.range_curvature import Ranges, measured_ranges
from amq_onnx.rewriting import Prepared
from amq_onnx.runtime.refusals import blamed_on_data
from amq_onnx.sample_choice import curved_first, importance_of, weighed_samples
from amq_onnx.sensitivity import ActivationRow, Sensitivity, WeightRow, arrays_by_name, numbers_by_name, six_digits
from amq_onnx.site_losses import LOSS_METHODS, LossMethod, SiteLosses, measure_losses
from amq_onnx.site_perturbations import perturbations
from amq_onnx.spectra import measure_activation_eigenvalues, measure_spectra
from amq_onnx.traces import Method as TraceMethod
from amq_onnx.traces import Trace, Traces, measure_traces

# Losses are known well enough from this many samples that tell much; more only where so many sites and widths share a
# pass that measuring each of them would take longer.
_FEWEST_SAMPLES = 64
_SAMPLES_PER_ENTRY = 2
# Traces that bound losses: samples, and probes of each.
_BOUND_SAMPLES = 128
_BOUND_PROBES = 2
# Largest eigenvalues: how well those of weights are known, after how many passes at most; samples for activations,
# each of which needs passes of its own.
_EIGENVALUE_ERROR = 0.05
_EIGENVALUE_PASSES = 30
_EIGENVALUE_SAMPLES = 16


def measure_sensitivity(
    prepared: Prepared,
    data: Dataset,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int] | None,
    options: SensitivityOptions | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """The table of every site at the asked widths, from one pass for ranges and a few for curvature.

    Raises DataError for data that the model can't run on.
    """
    prepared.require_weights()
    options = options or SensitivityOptions()
    if options.channels and options.method not in get_args(TraceMethod):
        raise UsageError(f"--granularity channel needs traces: use --sensitivity {' or '.join(get_args(TraceMethod))}")
    heads, left_out = find_heads(prepared.model, options.loss)
    executor = Executor(weighed(prepared.model, heads), device=options.device)
    data = freed(data, [executor])
    activations = [site.name for site in prepared.sites.activations] if activation_bits else []
    layers = prepared.layers if options.correct_biases else ()
    names = [head.tensor for head in heads]
    weighed_layers = prepared.linear_layers if options.weighs or options.learns else ()
    with blamed_on_data(prepared.model, data):
        seen = calibrate(executor, data, activations, names, layers, progress, importance_of(heads), weighed_layers)
    work = _Measurement(executor, data, prepared, seen, weight_bits, activation_bits or (), options, progress)
    found = work.measure(heads)
    if options.loss == "auto" and not found.any_loss:
        # Scores so far apart that softmax is 0 and 1 to the last bit have no curvature, as in networks with random
        # weights: every plan would look as good as any other.
        heads = [replace(head, loss="squared", why="softmax or sigmoid is saturated on all samples") for head in heads]
        found = work.measure(heads)
    reason = "no output depends on it on the calibration data (a branch never taken, a gate always shut)"
    measured = options.float_where_needed and options.method in LOSS_METHODS
    float_activations = outweighing(found.weights, found.activations) if measured else {}
    sites = prepared.sites.without(
        {name: reason for name in found.unreached if name in work.encodings} | float_activations
    )
    return Sensitivity(
        model=fingerprint(prepared.model),
        method=options.method,
        loss={head.source: head.story for head in heads}
        | {name: f"{LEFT_OUT}{reason}" for name, reason in left_out.items()},
        samples=found.samples,
        probes=found.probes,
        converged=found.converged,
        seed=options.seed,
        ranges=options.ranges,
        rounding="learned" if options.learns else "nearest",
        weights={site.name: found.weights[site.name] for site in sites.weights},
        activations={name: row for name, row in found.activations.items() if name not in float_activations},
        left_float=sites.left_float,
        # As the table's file holds them, so that a saved plan or table gives the same file to the last bit.
        expected_inputs=arrays_by_name(numbers_by_name(seen.expected_inputs)),
        scales=work.scales,
        equalized=prepared.equalized,
        quantized_outputs=prepared.quantized_outputs,
    )


def _as_written(found: WeightEncodings) -> dict[int, NDArray[np.float32]]:
    """Scales that data have chosen, by bits, as the table's file holds them; `found` takes them too."""
    scales = {}
    for bits, encoding in found.encodings.items():
        if bits <= MOST_BITS_FOR_OUTPUTS:
            scales[bits] = np.array(six_digits(encoding.scale), np.float32)
            found.encodings[bits] = replace(encoding, scale=scales[bits])
    return scales


def _with_channels(row: WeightRow, trace: Trace, found: WeightEncodings) -> WeightRow:
    count = len(next(iter(found.errors.values())))
    traces = np.full(count, trace.trace / count)
    if trace.channels is not None:
        traces = shrunk(trace.channels, trace.channel_variance)
    errors = {bits: six_digits(error) for bits, error in found.errors.items()}
    return replace(row, channel_trace=six_digits(traces), channel_error=errors)


@dataclass(frozen=True)
class _Found:
    """Rows of all sites, and how they came about. unreached: sites of which nothing is known."""

    weights: dict[str, WeightRow]
    activations: dict[str, ActivationRow]
    unreached: frozenset[str]
    samples: int
    probes: int
    converged: bool

    @property
    def any_loss(self) -> bool:
        """False where every plan would look as good as any other."""
        return any(row.trace or any(value for value, _ in row.loss.values()) for row in self.weights.values())


class _Measurement:
    """What is measured of one model on some data, for any choice of losses."""

    def __init__(
        self,
        executor: Executor,
        data: Dataset,
        prepared: Prepared,
        seen: Calibration,
        weight_bits: Sequence[int],
        activation_bits: Sequence[int],
        options: SensitivityOptions,
        progress: Progress | None,
    ) -> None:
        self.executor = executor
        self.data = data
        self.prepared = prepared
        self.seen = seen
        self.activation_bits = activation_bits
        self.options = options
        self.progress = progress
        self.encodings: dict[str, WeightEncodings] = {}
        self.scales: dict[str, dict[int, NDArray[np.float32]]] = {}
        # By name and bits, weights as they are after quantization, for the methods that measure what that does.
        self.rounded: dict[str, HeldCodes] = {}
        for number, site in enumerate(prepared.sites.weights):
            values = prepared.weight(site.name)
            # Popped, since moments of all layers take more memory than anything else here.
            error = seen.output_errors.pop(site.name, None)
            weighing = error if options.weighs else None
            found = weight_encodings(values, site.axis, weight_bits, options.ranges, output_error=weighing)
            self.encodings[site.name] = found
            if weighing is not None:
                self.scales[site.name] = _as_written(found)
            if options.method in LOSS_METHODS:
                learning = error if options.learns else None
                self.rounded[site.name] = rounded_weight(values, site.axis, found.encodings, learning)
            if progress is not None:
                progress("scales of weights", number + 1, len(prepared.sites.weights))

    def measure(self, heads: Sequence[Head]) -> _Found:
        """All rows, with these losses."""
        losses = losses_for(heads, self.seen.mean_square)
        ranges = measured_ranges(
            self.executor,
            self.data,
            self.prepared.code_operators,
            self.seen,
            self.activation_bits,
            heads,
            losses,
            method=self.options.ranges,
            samples=self.options.samples,
            seed=self.options.seed,
            progress=self.progress,
        )
        encodings = {
            name: {bits: activation_encoding(*ends, bits) for bits, ends in by_bits.items()}
            for name, by_bits in ranges.items()
        }
        method = self.options.method
        if method == "gauss-newton" or method == "hessian":
            return self._from_traces(self._traces(heads, losses, encodings, method, self.options), ranges)
        if method == "eigenvalue":
            return self._from_eigenvalues(heads, losses, encodings, ranges)
        if method == "norm":
            return self._from_norms(ranges)
        found = self._losses(heads, losses, encodings, method)
        if self.options.learns:
            found = self._bounded(found, heads, losses)
        return self._from_losses(found, encodings, ranges)

    def _bounded(self, found: SiteLosses, heads: Sequence[Head], losses: Sequence[Loss]) -> SiteLosses:
        """Losses of weights that are at most Ω."""
        options = replace(
            self.options,
            samples=min(self.options.samples, _BOUND_SAMPLES),
            max_probes=min(self.options.max_probes, _BOUND_PROBES),
        )
        traces = self._traces(heads, losses, {}, "gauss-newton", options).weights
        below = {
            name: {
                bits: bounded(loss, self.encodings[name].squared_error(bits), trace)
                for bits, loss in found.losses[name].items()
            }
            for name, trace in traces.items()
        }
        return replace(found, losses=found.losses | below)

    def _traces(
        self,
        heads: Sequence[Head],
        losses: Sequence[Loss],
        encodings: Mapping[str, Mapping[int, Encoding]],
        method: TraceMethod,
        options: SensitivityOptions,
    ) -> Traces:
        data = self.data.first(options.samples)
        return measure_traces(
            self.executor,
            # How much channels differ from one batch to the next is told of batches drawn at random.
            data if options.channels else curved_first(data, self.seen.importance),
            {site.name: site.axis for site in self.prepared.sites.weights},
            encodings,
            heads,
            losses,
            method=method,
            layers=self.prepared.layers,
            expected_inputs=self.seen.expected_inputs,
            relative_error=options.relative_error,
            max_probes=options.max_probes,
            batch_size=self.seen.curvature_batch_size(),
            seed=options.seed,
            progress=self.progress,
        )

    def _from_traces(self, traces: Traces, ranges: Ranges) -> _Found:
        weights = {}
        for site in self.prepared.sites.weights:
            trace = traces.weights[site.name]
            row = WeightRow(site.shape, trace.trace, trace.error, self._squared_errors(site.name))
            whole = not self.options.channels or site.axis is None
            weights[site.name] = row if whole else _with_channels(row, trace, self.encodings[site.name])
        activations = {}
        for name, by_bits in ranges.items():
            trace = traces.activations[name]
            perturbation = {bits: value for bits, (value, _) in trace.perturbation.items()}
            activations[name] = ActivationRow(trace.elements, trace.trace, trace.error, by_bits, perturbation)
        # A zero trace would make them look free, and the narrowest width would be theirs.
        known = any(trace.trace for trace in traces.weights.values())
        unreached = frozenset(name for name, trace in traces.weights.items() if known and trace.trace == 0)
        return _Found(weights, activations, unreached, traces.samples, traces.probes, traces.converged)

    def _from_eigenvalues(
        self,
        heads: Sequence[Head],
        losses: Sequence[Loss],
        encodings: Mapping[str, Mapping[int, Encoding]],
        ranges: Ranges,
    ) -> _Found:
        data = self.data.first(self.options.samples)
        common: dict[str, Any] = {"seed": self.options.seed, "progress": self.progress}
        names = [site.name for site in self.prepared.sites.weights]
        spectra = measure_spectra(
            self.executor,
            data,
            names,
            heads,
            losses,
            count=1,
            relative_error=_EIGENVALUE_ERROR,
            max_products=_EIGENVALUE_PASSES,
            batch_size=self.seen.loss_batch_size(),
            **common,
        )
        few = data.first(_EIGENVALUE_SAMPLES)
        of_activations = measure_activation_eigenvalues(
            self.executor, few, encodings, heads, losses, batch_size=self.seen.curvature_batch_size(), **common
        )
        tops = {name: abs(float(found.values[0])) for name, found in spectra.items()}
        perturbations = {name: found.perturbation for name, found in of_activations.items()}
        unreached = frozenset(name for name, top in tops.items() if any(tops.values()) and not top)
        products = max(found.products for found in spectra.values())
        converged = all(found.converged for found in spectra.values())
        return _Found(*self._rows(tops, perturbations, ranges), unreached, data.samples(), products, converged)

    def _from_norms(self, ranges: Ranges) -> _Found:
        norms = {
            name: {
                bits: self.seen.elements[name] * mean_squared_error(self.seen.histograms[name], *ends, bits)
                for bits, ends in by_bits.items()
            }
            for name, by_bits in ranges.items()
        }
        ones = {site.name: 1.0 for site in self.prepared.sites.weights}
        return _Found(*self._rows(ones, norms, ranges), frozenset(), self.seen.samples, 0, True)

    def _rows(
        self, factors: Mapping[str, float], perturbations: Mapping[str, Mapping[int, float]], ranges: Ranges
    ) -> tuple[dict[str, WeightRow], dict[str, ActivationRow]]:
        """Rows whose score is a factor times ||Q(W) - W||^2 of weights, and given of activations."""
        weights = {}
        for site in self.prepared.sites.weights:
            errors = self._squared_errors(site.name)
            scores = {bits: (factors[site.name] * error, 0.0) for bits, error in errors.items()}
            weights[site.name] = WeightRow(site.shape, None, None, errors, scores)
        activations = {
            name: ActivationRow(
                self.seen.elements[name], None, None, ranges[name], {}, {bits: (p, 0.0) for bits, p in row.items()}
            )
            for name, row in perturbations.items()
        }
        return weights, activations

    def _losses(
        self,
        heads: Sequence[Head],
        losses: Sequence[Loss],
        encodings: Mapping[str, Mapping[int, Encoding]],
        method: LossMethod,
    ) -> SiteLosses:
        options, seen = self.options, self.seen
        entries = sum(len(by_bits.encodings) for by_bits in self.encodings.values())
        entries += sum(map(len, encodings.values()))
        telling = max(_FEWEST_SAMPLES, _SAMPLES_PER_ENTRY * entries)
        wanted = options.samples if self.data.fixed_batch() is not None else min(options.samples, telling)
        data, weights = weighed_samples(self.data, seen.importance, wanted, options.seed)
        sites = perturbations(self.executor, self.prepared, self.rounded, encodings, seen.expected_inputs)
        return measure_losses(
            self.executor,
            data,
            weights,
            sites,
            heads,
            losses,
            method=method,
            batch_size=seen.loss_batch_size(),
            seed=options.seed,
            progress=self.progress,
        )

    def _from_losses(
        self, found: SiteLosses, encodings: Mapping[str, Mapping[int, Encoding]], ranges: Ranges
    ) -> _Found:
        losses = {name: falling(by_bits) for name, by_bits in found.losses.items()}
        weights = {
            site.name: WeightRow(site.shape, None, None, self._squared_errors(site.name), losses[site.name])
            for site in self.prepared.sites.weights
        }
        activations = {
            name: ActivationRow(self.seen.elements[name], None, None, ranges[name], {}, losses[name])
            for name in encodings
        }
        # What rounding changes without any loss is out of reach; where that is so of all, the losses are at fault.
        silent = {
            name
            for name, row in weights.items()
            if any(row.squared_error.values()) and not any(value for value, _ in row.loss.values())
        }
        unreached = frozenset(silent) if len(silent) < len(weights) else frozenset()
        return _Found(weights, activations, unreached, found.samples, 1, True)

    def _squared_errors(self, name: str) -> dict[int, float]:
        found = self.encodings[name]
        return {bits: found.squared_error(bits) for bits in sorted(found.errors)}
