"""Spectra of the Hessian's block of each weight, from passes of the graph over the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from amq_onnx.calibration import Progress, tensors
from amq_onnx.curvature.lanczos import Spectrum, SpectrumSearch
from amq_onnx.curvature.losses import Loss
from amq_onnx.errors import DataError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import LABELS, Batch, Dataset
from amq_onnx.model.heads import Head
from amq_onnx.traces import Method, mixed_seed


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


class _Blocks:
    """The Hessian's blocks of weights, known by their products with vectors."""

    def __init__(
        self,
        executor: Executor,
        data: Dataset,
        heads: Sequence[Head],
        losses: Sequence[Loss],
        method: Method,
        batch_size: int,
    ) -> None:
        self.executor = executor
        self.data = data
        self.heads = heads
        self.losses = losses
        self.method = method
        self.batch_size = batch_size

    def products(self, vectors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each weight's block times its vector, float64 [elements]."""
        totals = {name: torch.zeros_like(vector) for name, vector in vectors.items()}
        samples = 0
        for batch in self.data.batches(self.batch_size):
            leaves = {name: self.executor.initializers[name].detach().requires_grad_() for name in vectors}
            found = self.executor.run({**tensors(batch, self.executor), **leaves}, [h.tensor for h in self.heads])
            scores = [found[head.tensor] for head in self.heads]
            loss = torch.stack(list(self._losses(scores, batch))).sum()
            gradients: list[Tensor | None] = [None] * len(leaves)
            if loss.requires_grad:
                gradients = list(torch.autograd.grad(loss, [*leaves.values()], create_graph=True, allow_unused=True))
            for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
                if gradient is None or not gradient.requires_grad:
                    continue
                vector = vectors[name].reshape(leaf.shape).to(gradient)
                (product,) = torch.autograd.grad(gradient, leaf, vector, retain_graph=True, allow_unused=True)
                if product is not None:
                    totals[name] += product.detach().double().reshape(-1).cpu()
            samples += self.data.count(batch)
        return {name: total / samples for name, total in totals.items()}

    def _losses(self, scores: Sequence[Tensor], batch: Batch) -> Iterator[Tensor]:
        """A sum over samples for each head, whose Hessian is what is asked for.

        The divergence from the scores themselves has no gradient there, so that of its second derivative in the weights
        J' H J is all there is: the Gauss-Newton matrix.
        """
        if self.method == "hessian" and (LABELS not in batch or LABELS in self.executor.inputs):
            raise DataError("the Hessian needs `labels` in the data: add them, or use --method gauss-newton")
        for loss, score in zip(self.losses, scores, strict=True):
            if self.method == "hessian":
                target = torch.from_numpy(np.asarray(batch[LABELS])).to(self.executor.device)
                yield loss.value(score, target).sum()
            else:
                yield loss.divergence(score.detach(), score).sum()
