"""Spectra of the Hessian's blocks of weights and activations, from passes of the graph over the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.calibration import Progress, tensors
from amq_onnx.curvature.lanczos import Spectrum, SpectrumSearch
from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.sample_axis import per_sample
from amq_onnx.curvature.seeds import mixed_seed
from amq_onnx.curvature.vector_jacobian import derivatives, vector_jacobian
from amq_onnx.differentiable_forward import DifferentiableForward
from amq_onnx.executor.interpreter import Executor
from amq_onnx.head_losses import labelled_losses
from amq_onnx.model.data import Batch, Dataset
from amq_onnx.model.heads import Head
from amq_onnx.perturbation import round_trip
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.traces import Method

# Power iterations for one activation: the start is random, and the first eigenvalue rarely has a close second.
_ITERATIONS = 30
_SETTLED = 0.002


def measure_spectra(
    executor: Executor,
    data: Dataset,
    weights: Sequence[str],
    heads: Sequence[Head],
    losses: Sequence[Loss],
    *,
    method: Method = "gauss-newton",
    count: int = 20,
    relative_error: float = 0.01,
    max_products: int = 100,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Spectrum]:
    """The spectrum of each of `weights`' blocks of the Hessian of the mean loss, by name.

    `gauss-newton` needs no labels, `hessian` needs `labels` in the data. All weights that still want a product get one
    from each pass over the data, which computes the graph and its gradient once for all of them. Memory is that of one
    batch and its gradient's graph, and one vector a product and weight. The starts follow from `seed` alone.

    Raises DataError where labels are missing or don't fit.
    """
    searches = {
        name: SpectrumSearch(
            executor.initializers[name].numel(),
            count,
            torch.Generator().manual_seed(mixed_seed(seed, 0, number)),
            relative_error=relative_error,
            max_products=max_products,
        )
        for number, name in enumerate(weights)
    }
    blocks = _Blocks(executor, data, heads, losses, method, batch_size)
    while waiting := [name for name, search in searches.items() if not search.done()]:
        directions = {name: searches[name].process.direction for name in waiting}
        for name, product in blocks.products(directions).items():
            searches[name].process.add(product)
        if progress is not None:
            progress("spectra, weights that are done", len(searches) - len(waiting), len(searches))
    return {name: search.result() for name, search in searches.items()}


@dataclass(frozen=True)
class _Blocks:
    """The Hessian's blocks of weights, known by their products with vectors."""

    executor: Executor
    data: Dataset
    heads: Sequence[Head]
    losses: Sequence[Loss]
    method: Method
    batch_size: int

    def products(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each weight's block times its vector, float64 [elements]."""
        totals = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        samples = 0
        for batch in self.data.batches(self.batch_size):
            leaves = {name: self.executor.initializers[name].detach().requires_grad_() for name in vectors}
            found = self.executor.run({**tensors(batch, self.executor), **leaves}, [h.tensor for h in self.heads])
            scores = [found[head.tensor] for head in self.heads]
            loss = self._loss(scores, batch)
            gradients = derivatives(loss, [*leaves.values()], create_graph=True)
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                if gradient is None or not gradient.requires_grad:
                    continue
                vector = vectors[name].reshape(leaf.shape).to(gradient)
                (product,) = vector_jacobian([gradient], [vector], [leaf])
                if product is not None:
                    totals[name] += product.detach().double().reshape(-1).cpu()
            samples += self.data.count(batch)
        return {name: total / samples for name, total in totals.items()}

    def _loss(self, scores: Sequence[Tensor], batch: Batch) -> Tensor:
        """A sum over samples, whose Hessian is what is asked for.

        The divergence from the scores themselves has no gradient there, so that of its second derivative in the weights
        J' H J is all there is: the Gauss-Newton matrix.
        """
        if self.method == "hessian":
            return labelled_losses(self.executor, scores, self.losses, batch, "--method gauss-newton")
        pairs = zip(self.losses, scores, strict=True)
        return torch.stack([loss.divergence(score.detach(), score).sum() for loss, score in pairs]).sum()


@dataclass(frozen=True, eq=False)
class ActivationEigenvalues:
    """The largest eigenvalue of each sample's own Gauss-Newton block of an activation, float64 [samples], and by bits
    E_n[ eigenvalue_n * ||Q(a_n) - a_n||^2 ]. elements: of one sample."""

    values: NDArray[np.float64]
    elements: int
    perturbation: dict[int, float]


def measure_activation_eigenvalues(
    executor: Executor,
    data: Dataset,
    activations: Mapping[str, Mapping[int, Encoding]],
    heads: Sequence[Head],
    losses: Sequence[Loss],
    *,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, ActivationEigenvalues]:
    """By activation, the largest eigenvalue of every sample's block: HAWQ's measure (Dong et al. 2019, arXiv
    1905.03696, algorithm 1), of all samples of a batch at once, whose blocks don't meet.

    activations: by name, the encodings whose perturbation is wanted. A tensor whose first dimension doesn't count the
    samples has one block for all of them.
    """
    forward = DifferentiableForward(executor, heads, list(activations))
    values: dict[str, list[Tensor]] = {name: [] for name in activations}
    errors: dict[str, dict[int, list[Tensor]]] = {name: {bits: [] for bits in row} for name, row in activations.items()}
    elements: dict[str, int] = {}
    done = 0
    for unit, batch in enumerate(data.batches(batch_size)):
        samples = data.count(batch)
        found = forward(tensors(batch, executor), {})
        scores = [found[head.tensor] for head in heads]
        loss = torch.stack(
            [each.divergence(score.detach(), score).sum() for each, score in zip(losses, scores, strict=True)]
        ).sum()
        sites = [found[name] for name in activations]
        gradients = derivatives(loss, sites, create_graph=True)
        generator = torch.Generator().manual_seed(mixed_seed(seed, 0, unit))
        for (name, encodings), site, gradient in zip(activations.items(), sites, gradients, strict=True):
            values[name].append(_top_eigenvalues(site, gradient, samples, generator))
            elements[name] = max(1, site.numel() // samples)
            for bits, encoding in encodings.items():
                error = round_trip(site.detach(), encoding) - site.detach()
                errors[name][bits].append(per_sample(error.square(), samples).cpu())
        done += samples
        if progress is not None:
            progress("eigenvalues of activations", done, None)
    result = {}
    for name, parts in values.items():
        tops = torch.cat(parts)
        perturbation = {bits: float((tops * torch.cat(each)).mean()) for bits, each in errors[name].items()}
        result[name] = ActivationEigenvalues(tops.numpy(), elements[name], perturbation)
    return result


def _top_eigenvalues(site: Tensor, gradient: Tensor | None, samples: int, generator: torch.Generator) -> Tensor:
    """Power iterations on the blocks of all samples, float64 [samples]."""
    top = torch.zeros(samples, dtype=torch.float64)
    if gradient is None or not gradient.requires_grad:
        return top
    blocks = samples if site.ndim and site.shape[0] == samples else 1
    vector = torch.randn(site.shape, generator=generator).to(site)
    for _ in range(_ITERATIONS):
        flat = vector.reshape(blocks, -1)
        vector = (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)).reshape(site.shape)
        (product,) = vector_jacobian([gradient], [vector], [site])
        assert product is not None  # the gradient was found to depend on the site
        vector = product.detach()
        # The blocks have no negative eigenvalue, so that the length of a product rises towards the largest.
        before, top = top, vector.reshape(blocks, -1).norm(dim=1).double().cpu().expand(samples)
        if bool(((top - before).abs() <= _SETTLED * top).all()):
            break
    return top
