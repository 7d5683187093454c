"""Curvature of every weight and activation, from passes of the graph over the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.calibration import Progress, tensors
from amq_onnx.curvature.gauss_newton import probe_gradients
from amq_onnx.curvature.hutchinson import probe_products
from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.sample_axis import SampleAxis, per_sample, sample_axes
from amq_onnx.curvature.seeds import mixed_seed
from amq_onnx.curvature.statistics import UnitMeans
from amq_onnx.differentiable_forward import DifferentiableForward
from amq_onnx.executor.interpreter import Executor
from amq_onnx.expected_inputs import Centring
from amq_onnx.head_losses import labelled_losses
from amq_onnx.model.data import Batch, Dataset
from amq_onnx.model.heads import Head
from amq_onnx.model.layers import Layer
from amq_onnx.perturbation import round_trip
from amq_onnx.quantizer.encoding import Encoding

Method = Literal["gauss-newton", "hessian"]
# Draws on one forward pass: the second costs a backward pass alone and makes an error known after one sweep.
_PROBES_PER_PASS = 2
# As many at most on later passes.
_MOST_PER_PASS = 16
# A trace this much below the largest contribution needs no small relative error: it can't change a plan.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True, eq=False)
class Trace:
    """A site's trace and what follows from it.

    trace: of the Hessian of the mean loss (weights), or the mean over samples of each sample's own (activations).
    error: its standard error, over the random probes. elements: the block's dimension.
    perturbation: for activations, by bits, E_n[ trace_n / elements * ||Q(a_n) - a_n||^2 ] and its standard error.
    channels: for weights, the trace of each index of the channel axis (of all together without one). channel_variance:
    the variance of each, over batches of samples and random probes.
    """

    trace: float
    error: float
    elements: int
    perturbation: dict[int, tuple[float, float]] = field(default_factory=dict)
    channels: NDArray[np.float64] | None = None
    channel_variance: NDArray[np.float64] | None = None

    @property
    def mean(self) -> float:
        """The trace per element."""
        return self.trace / self.elements


@dataclass(frozen=True)
class Traces:
    """Traces by site, how many probes a sample had at most, and whether every error is as small as asked."""

    weights: dict[str, Trace]
    activations: dict[str, Trace]
    probes: int
    samples: int
    converged: bool


def measure_traces(
    executor: Executor,
    data: Dataset,
    weights: Mapping[str, int | None],
    activations: Mapping[str, Mapping[int, Encoding]],
    heads: Sequence[Head],
    losses: Sequence[Loss],
    *,
    method: Method = "gauss-newton",
    layers: Sequence[Layer] = (),
    expected_inputs: Mapping[str, NDArray[np.float32]] | None = None,
    relative_error: float = 0.05,
    max_probes: int = 64,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Traces:
    """Traces of all sites, by sweeps over the data until every site's standard error is small enough.

    weights: channel axis by name. activations: by name, the encodings whose perturbation is wanted.
    layers, expected_inputs: where biases make up for the mean error of rounded weights, the curvature of what is left
    is that of centred inputs (gauss-newton only, see `centred`): with inputs whose mean is far above their deviation
    the difference is of orders of magnitude.
    `gauss-newton` needs no labels; `hessian` needs `labels` in the data and Hutchinson products per site.
    Stops when each standard error is `relative_error` of its trace or less, or after `max_probes` per sample. After the
    first sweep only batches are drawn again that errors come from, so put samples of much curvature together.
    The probes follow from `seed` alone. Memory is that of one batch of `batch_size` samples.

    Raises DataError where labels are missing or don't fit.
    """
    centring = Centring(executor, weights, layers, expected_inputs or {}) if method != "hessian" else None
    sweep = _Sweep(executor, dict(weights), activations, heads, losses, method, centring, seed)
    converged = False
    wanted: dict[int, int] | None = None
    while not converged and wanted != {}:
        last = None if wanted is None else max(wanted)
        for unit, batch in enumerate(data.batches(batch_size)):
            samples = data.count(batch)
            if draws := min(_PROBES_PER_PASS, max_probes) if wanted is None else wanted.get(unit, 0):
                sweep.add_batch(unit, batch, samples, draws)
                if progress is not None:
                    progress(f"curvature, probe {sweep.probes(unit) - draws + 1}", sweep.samples, None)
            else:
                sweep.pass_over(samples)
            if unit == last:
                break
        sweep.start_over()
        converged = sweep.worst_error() <= relative_error
        wanted = sweep.draws_to_come(relative_error, max_probes)
    return sweep.result(converged)


class _Sweep:
    """Adds batches to the running means of all sites."""

    def __init__(
        self,
        executor: Executor,
        weights: dict[str, int | None],
        activations: Mapping[str, Mapping[int, Encoding]],
        heads: Sequence[Head],
        losses: Sequence[Loss],
        method: Method,
        centring: Centring | None,
        seed: int,
    ) -> None:
        self.executor = executor
        self.axes = weights
        self.activations = activations
        self.heads = heads
        self.losses = losses
        self.method = method
        self.centring = centring
        self.seed = seed
        self.forward = DifferentiableForward(executor, heads, list(activations))
        self.leaves = {name: executor.initializers[name].detach().requires_grad_() for name in weights}
        self.weight_means = {name: UnitMeans() for name in weights}
        self.channel_sums: dict[str, dict[int, Tensor]] = {name: {} for name in weights}
        self.activation_means = {name: UnitMeans() for name in activations}
        self.sample_axes: dict[str, SampleAxis | None] = {}  # of the activations; told from the first batch
        self.elements: dict[str, int] = {}
        self.errors: dict[str, dict[int, list[float]]] = {
            name: {bits: [] for bits in encodings} for name, encodings in activations.items()
        }
        self.samples = 0
        self._total = 0
        self._first = True
        self._probes: list[int] = []  # of each batch
        self._units: list[int] = []  # the batch of each sample

    def add_batch(self, unit: int, batch: Batch, samples: int, draws: int) -> None:
        """Draw a batch so many times more; all of them have to be met, in turn, before one is met again."""
        biases = {} if self.centring is None else self.centring.biases
        found = self.forward(tensors(batch, self.executor), {**self.leaves, **biases})
        scores = [found[head.tensor] for head in self.heads]
        sites = [*self.leaves.values(), *(found[name] for name in self.activations)]
        if not self.sample_axes:
            axes = sample_axes(scores, sites[len(self.leaves) :], samples)
            self.sample_axes = dict(zip(self.activations, axes, strict=True))
        if self._first:
            self._probes.append(0)
            self._units += [unit] * samples
            self._measure_perturbations(found, samples)
        probe = self._probes[unit]
        for draw in range(draws):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, probe + draw, unit))
            for index, product in enumerate(self._products(scores, sites, batch, generator)):
                if index < len(self.leaves):
                    self._add_weight(list(self.leaves)[index], unit, product)
                else:
                    name = list(self.activations)[index - len(self.leaves)]
                    parts = per_sample(product, samples, self.sample_axes[name])
                    for offset, value in enumerate(parts.tolist()):
                        self.activation_means[name].add(self.samples + offset, value)
        self._probes[unit] += draws
        self.samples += samples

    def pass_over(self, samples: int) -> None:
        """Leave a batch as it is."""
        self.samples += samples

    def start_over(self) -> None:
        self._total = max(self._total, self.samples)
        self.samples = 0
        self._first = False

    def probes(self, unit: int) -> int:
        """How often a batch was drawn."""
        return self._probes[unit]

    def worst_error(self) -> float:
        """The largest relative standard error of a site whose trace matters."""
        return max((means.standard_error() / scale for means, _, scale in self._judged()), default=0.0)

    def _judged(self) -> Iterator[tuple[UnitMeans, Sequence[int], float]]:
        """Of each site, its means, the batch of each of their units, and the trace that its error is relative to."""
        for group, batches in ((self.weight_means, range(len(self._probes))), (self.activation_means, self._units)):
            totals = {name: abs(means.total()) for name, means in group.items()}
            largest = max(totals.values(), default=0.0)
            for name, means in group.items():
                scale = max(totals[name], _NEGLIGIBLE * largest)
                if scale > 0:
                    yield means, batches, scale

    def draws_to_come(self, relative_error: float, max_probes: int) -> dict[int, int]:
        """How often to draw each batch again: half of what it lacks; those that lack none are left out.

        A site whose batches have means m_u with n_u draws has the error e^2 = k sum m_u^2 / n_u, the deviation of a
        draw being in proportion to its mean. The fewest draws that make it t have n_u = k m_u sum m / t^2 (Neyman
        1934). Of activations, whose samples are drawn apart, m_u^2 is the sum over a batch.
        """
        counts = np.array(self._probes, np.float64)
        lacking = np.zeros(len(counts))
        for means, batches, scale in self._judged():
            target, error = relative_error * scale, means.standard_error()
            if error <= target:
                continue
            squares = np.bincount(batches, np.square(means.means()), len(counts))
            if target == 0 or not np.isfinite(error) or not squares.any():
                lacking[:] = np.inf
                continue
            factor = error**2 / (squares / counts).sum()
            sizes = np.sqrt(squares)
            lacking = np.maximum(lacking, factor * sizes * sizes.sum() / target**2 - counts)
        wanted = {}
        for unit, lack in enumerate(lacking):
            draws = min(max(lack / 2, _PROBES_PER_PASS), _MOST_PER_PASS, max_probes - counts[unit])
            if lack > 0 and draws >= 1:
                wanted[unit] = int(draws)
        return wanted

    def result(self, converged: bool) -> Traces:
        weights = {}
        draws = np.array(self._probes)[:, None]
        for name, means in self.weight_means.items():
            units = torch.stack(list(self.channel_sums[name].values())).cpu().numpy() / draws / self._total
            weights[name] = Trace(
                means.total() / self._total,
                means.standard_error() / self._total,
                self.leaves[name].numel(),
                channels=units.sum(0),
                channel_variance=len(units) * units.var(0, ddof=1) if len(units) > 1 else None,
            )
        activations = {}
        for name, means in self.activation_means.items():
            perturbation = {}
            for bits, errors in self.errors[name].items():
                weighted = means.means() / self.elements[name] * np.array(errors)
                spread = np.sqrt((means.variances() * np.square(errors)).sum()) / self.elements[name]
                perturbation[bits] = (float(weighted.sum() / self._total), float(spread / self._total))
            activations[name] = Trace(
                means.total() / self._total,
                means.standard_error() / self._total,
                self.elements[name],
                perturbation,
            )
        return Traces(weights, activations, int(draws.max()), self._total, converged)

    def _products(
        self, scores: list[Tensor], sites: list[Tensor], batch: Batch, generator: torch.Generator
    ) -> Iterator[Tensor]:
        if self.method != "hessian":
            assert self.centring is not None
            biases = list(self.centring.biases.values())
            gradients = probe_gradients(scores, self.losses, [*sites, *biases], generator)
            self.centring.centre(list(self.leaves), gradients)
            return (gradient.square() for gradient in gradients[: len(sites)])
        loss = labelled_losses(self.executor, scores, self.losses, batch, "--sensitivity gauss-newton")
        return probe_products(loss, sites, generator)

    def _add_weight(self, name: str, unit: int, product: Tensor) -> None:
        axis = self.axes[name]
        per_channel = product.double().flatten()[None] if axis is None else product.double().movedim(axis, 0).flatten(1)
        per_channel = per_channel.sum(1)
        self.weight_means[name].add(unit, float(per_channel.sum()))
        held = self.channel_sums[name].get(unit)
        self.channel_sums[name][unit] = per_channel if held is None else held + per_channel

    def _measure_perturbations(self, found: Mapping[str, Tensor], samples: int) -> None:
        with torch.no_grad():
            for name, encodings in self.activations.items():
                value = found[name].detach()
                self.elements[name] = max(1, value.numel() // samples)
                for bits, encoding in encodings.items():
                    error = round_trip(value, encoding).sub_(value).square_()
                    self.errors[name][bits] += per_sample(error, samples, self.sample_axes[name]).tolist()
