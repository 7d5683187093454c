"""What each site alone adds to the loss at each width: to second order, measured, or one corrected by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.calibration import Progress, tensors
from amq_onnx.curvature.gauss_newton import probe_gradients
from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.quadratic_form import quadratic_draws
from amq_onnx.curvature.sample_axis import SampleAxis, sample_axes
from amq_onnx.curvature.seeds import mixed_seed
from amq_onnx.curvature.statistics import ratio_estimate, sum_with_error
from amq_onnx.differentiable_forward import DifferentiableForward
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head
from amq_onnx.perturbation import Perturbation, Pulled

LossMethod = Literal["hybrid", "quadratic", "measured"]
LOSS_METHODS: tuple[str, ...] = get_args(LossMethod)
"""Those that measure losses, where others put a trace and an error together."""
Entry = tuple[str, int]
"""A site and a width."""

# Above this rise of the loss (nats, or half the relative squared error) the quadratic form is no longer true.
_LARGE = 0.005
# Samples that tell by how much: the ratio to the quadratic form varies little between samples.
_MEASURED_SAMPLES = 64


@dataclass(frozen=True)
class SiteLosses:
    """Expected rise of the loss by site and bits, with its standard error over samples and probes.

    It is zero where no output depends on a site, on these data. samples: how many were looked at. measured: how many
    entries were measured.
    """

    losses: dict[str, dict[int, tuple[float, float]]]
    samples: int
    measured: int


def measure_losses(
    executor: Executor,
    data: Dataset,
    weights: Tensor,
    sites: Mapping[str, Perturbation],
    heads: Sequence[Head],
    losses: Sequence[Loss],
    *,
    method: LossMethod = "hybrid",
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> SiteLosses:
    """What quantizing each site alone adds to the mean loss, at each of its widths. Needs no labels.

    `quadratic`: 1/2 d' J' H J d with the real perturbation d (see quadratic_draws), all sites and widths from one
    backward pass; `measured`: the divergence of the outputs themselves, of which only what depends on the site is
    computed again; `hybrid`: the quadratic form where that is small and therefore true, elsewhere corrected by its
    ratio to the measured divergence on some samples.

    data, weights: samples, and the weight of each in the mean, [samples]. Memory is that of one batch of `batch_size`.
    """
    work = _Work(executor, data, weights, sites, heads, losses, batch_size, seed, progress)
    every = [(name, bits) for name, site in sites.items() for bits in site.widths]
    if method == "measured":
        exact, samples = work.divergences(every, 1)
        found = {entry: sum_with_error(np.concatenate(exact[entry])) for entry in every}
        return SiteLosses(_by_site(found), samples, len(every))
    cheap, samples = work.draws()
    found = {entry: sum_with_error(np.concatenate(cheap[entry])) for entry in every}
    large = [entry for entry in every if found[entry][0] > _LARGE] if method == "hybrid" else []
    if large:
        stride = max(1, samples // _MEASURED_SAMPLES)
        exact, _ = work.divergences(large, stride, [cheap[entry] for entry in large])
        for entry in large:
            found[entry] = _corrected(cheap[entry], exact[entry], stride)
    return SiteLosses(_by_site(found), samples, len(large))


def _corrected(
    cheap: Sequence[NDArray[np.float64]], exact: Sequence[NDArray[np.float64]], stride: int
) -> tuple[float, float]:
    """The ratio estimate of one entry, its draws given by batch; `exact` of every `stride`-th batch."""
    ends = np.cumsum([0, *(len(part) for part in cheap)])
    chosen = np.concatenate([np.arange(ends[batch], ends[batch + 1]) for batch in range(0, len(cheap), stride)])
    return ratio_estimate(np.concatenate(cheap), np.concatenate(exact), chosen)


def _by_site(found: Mapping[Entry, tuple[float, float]]) -> dict[str, dict[int, tuple[float, float]]]:
    losses: dict[str, dict[int, tuple[float, float]]] = {}
    for (name, bits), value in found.items():
        losses.setdefault(name, {})[bits] = value
    return losses


class _Work:
    """Passes over the data, and what they share."""

    def __init__(
        self,
        executor: Executor,
        data: Dataset,
        weights: Tensor,
        sites: Mapping[str, Perturbation],
        heads: Sequence[Head],
        losses: Sequence[Loss],
        batch_size: int,
        seed: int,
        progress: Progress | None,
    ) -> None:
        self.executor = executor
        self.data = data
        self.weights = weights.double()
        self.sites = sites
        self.scores = [head.tensor for head in heads]
        self.heads = heads
        self.losses = losses
        self.batch_size = batch_size
        self.seed = seed
        self.progress = progress

    def draws(self) -> tuple[dict[Entry, list[NDArray[np.float64]]], int]:
        """Weighted draws of the quadratic form by entry and batch, and how many samples these have."""
        names = list(dict.fromkeys(entry for site in self.sites.values() for entry in site.entries))
        reads = list(dict.fromkeys(name for site in self.sites.values() for name in site.reads))
        forward = DifferentiableForward(self.executor, self.heads, names, reads)
        axes: dict[str, SampleAxis | None] | None = None
        drawn: dict[Entry, list[NDArray[np.float64]]] = {
            (name, bits): [] for name, site in self.sites.items() for bits in site.widths
        }
        samples = 0
        for unit, batch in enumerate(self.data.batches(self.batch_size)):
            found = forward(tensors(batch, self.executor), {})
            scores, points = [found[name] for name in self.scores], [found[name] for name in names]
            count = self.data.count(batch)
            if axes is None:
                axes = dict(zip(names, sample_axes(scores, points, count), strict=True))
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, 0, unit))
            weights = self._weights(samples, count, scores)
            gradients = probe_gradients(scores, self.losses, points, generator, weights)
            pulled = Pulled(dict(zip(names, gradients, strict=True)), axes, count)
            held = {name: value.detach() if isinstance(value, Tensor) else value for name, value in found.items()}
            with torch.inference_mode():
                for name, site in self.sites.items():
                    for bits, slopes in site.slopes(pulled, held).items():
                        drawn[name, bits].append(quadratic_draws(slopes).cpu().numpy())
            samples += count
            self._tell("loss to second order", samples)
        return drawn, samples

    def divergences(
        self, entries: Sequence[Entry], stride: int, like: Sequence[Sequence[NDArray[np.float64]]] = ()
    ) -> tuple[dict[Entry, list[NDArray[np.float64]]], int]:
        """Weighted divergences by entry and batch, of every `stride`-th batch, and how many samples these have.

        like: by entry and batch, an array as long as the result has to be: one number for the batch, or one a sample.
        """
        names = list(dict.fromkeys(name for name, _ in entries))
        unchanged = {name: self.executor.unchanged(self.sites[name].entries, self.scores) for name in names}
        needed = [*self.scores]
        for name in names:
            needed += [*unchanged[name], *self.sites[name].reads, *self.sites[name].entries]
        measured: dict[Entry, list[NDArray[np.float64]]] = {entry: [] for entry in entries}
        seen = samples = 0
        with torch.inference_mode():
            for unit, batch in enumerate(self.data.batches(self.batch_size)):
                count = self.data.count(batch)
                if unit % stride == 0:
                    found = self.executor.run(tensors(batch, self.executor), list(dict.fromkeys(needed)))
                    weights = self._weights(seen, count, [found[name] for name in self.scores])
                    for number, (name, bits) in enumerate(entries):
                        given = {read: found[read] for read in unchanged[name]}
                        changed = self.executor.run(
                            given | self.sites[name].quantized(bits, found), list(dict.fromkeys(self.scores))
                        )
                        rise = self._divergence(found, changed, weights)
                        whole = bool(like) and len(like[number][unit]) != len(rise)
                        measured[name, bits].append(rise.sum(keepdims=True) if whole else rise)
                    samples += count
                    self._tell("loss measured", samples)
                seen += count
        return measured, samples

    def _divergence(
        self, before: Mapping[str, Tensor], after: Mapping[str, Tensor], weights: Tensor
    ) -> NDArray[np.float64]:
        """Weighted divergence of all heads, as long as `weights`."""
        # Small ones are differences of much larger numbers.
        parts = [
            loss.divergence(before[name].double(), after[name].double()).clamp_min_(0)
            for name, loss in zip(self.scores, self.losses, strict=True)
        ]
        if len(weights) == 1:
            parts = [part.sum(0, keepdim=True) for part in parts]
        total: NDArray[np.float64] = (torch.stack(parts).sum(0) * weights).cpu().numpy()
        return total

    def _weights(self, first: int, count: int, scores: Sequence[Tensor]) -> Tensor:
        """Weights of a batch's samples, [samples]; their mean, [1], where a head doesn't count samples in front."""
        weights = self.weights[first : first + count].to(scores[0].device)
        return weights if all(score.shape[:1] == (count,) for score in scores) else weights.mean(0, keepdim=True)

    def _tell(self, step: str, samples: int) -> None:
        if self.progress is not None:
            self.progress(step, samples, len(self.weights))
