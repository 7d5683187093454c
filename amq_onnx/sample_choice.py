"""Which calibration samples tell how much, and which of them losses and curvature are measured on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from amq_onnx.curvature.importance import choose_samples
from amq_onnx.head_losses import losses_for
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head

# Share of the curvature in samples that are drawn together, so that few batches need many probes.
_FRONT_SHARE = 0.9


def importance_of(heads: Sequence[Head]) -> Callable[[Mapping[str, torch.Tensor], int], torch.Tensor]:
    """How much each sample's loss is curved in its scores, [samples], for `calibrate`: one with a certain answer tells
    little."""

    def importance(found: Mapping[str, torch.Tensor], samples: int) -> torch.Tensor:
        scores = [found[head.tensor] for head in heads]
        squares = {
            head.tensor: float(score.double().square().sum()) / samples
            for head, score in zip(heads, scores, strict=True)
        }
        total = torch.zeros(samples, dtype=torch.float64)
        for loss, score in zip(losses_for(heads, squares), scores, strict=True):
            if score.shape[:1] == (samples,):
                total += loss.trace(score).cpu()
        return total

    return importance


def weighed_samples(data: Dataset, importance: torch.Tensor, count: int, seed: int) -> tuple[Dataset, torch.Tensor]:
    """`count` samples that losses are measured on, and their weights: drawn by importance (see `choose_samples`), or
    the first ones, all alike, of a model whose batch is fixed."""
    if data.fixed_batch() is None:
        chosen, weights = choose_samples(importance, count, torch.Generator().manual_seed(seed))
        return data.chosen(chosen.tolist()), weights
    first = data.first(count)
    samples = first.samples()
    return first, torch.full((samples,), 1 / samples, dtype=torch.float64)


def curved_first(data: Dataset, importance: torch.Tensor) -> Dataset:
    """The same samples, those in front that hold most of the importance, where they are the minority.

    importance: of these samples and maybe of more behind the data's limit.
    """
    if data.fixed_batch() is not None:
        return data
    own = importance[: data.limit].double()
    order = own.argsort(descending=True, stable=True)
    held = own[order].cumsum(0)
    front = int((held < _FRONT_SHARE * held[-1]).sum()) + 1
    if front > len(own) // 2:
        return data
    first, rest = (sorted(part.tolist()) for part in (order[:front], order[front:]))
    return data.chosen(first).followed_by(data.chosen(rest))
