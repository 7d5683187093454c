"""One scale for what is added and for the sum, so that the sum is rounded no more.

A residual network rounds the sum behind each block again: codes i and j of the terms stand for a i and b j, and
a i + b j lies between the sum's own steps. With one scale s for all three it is s (i + j), a step of the sum, and only
what leaves its range is lost. Along a chain of sums that read each other, each then adds the rounding of one new term
instead of that and its own. It pays where steps are wide: at 4 bits, not at 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import Tensor

from amq_onnx.calibration import Progress
from amq_onnx.curvature.losses import Loss
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.heads import Head
from amq_onnx.passes.kernels import ABSORBED
from amq_onnx.tuning.quantizers import Quantizer

_SCALES_TRIED = 6
_REFINEMENTS = (0.89, 1.12)

Samples = Sequence[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]
"""Inputs of a graph and the float network's scores for them, a few samples at a time."""


@dataclass(frozen=True)
class Sum:
    """An Add of two dequantized tensors whose output is quantized: the scale initializers of its terms and its own."""

    terms: tuple[str, str]
    total: str

    @property
    def scales(self) -> tuple[str, ...]:
        """All three."""
        return (*self.terms, self.total)


def find_sums(model: onnx.ModelProto) -> list[Sum]:
    """The sums of a simulated graph, in its order: DQ, DQ -> Add -> [Relu, Clip] -> Q, one scale each."""
    scalars = {tensor.name for tensor in model.graph.initializer if not tensor.dims}
    dequantized = {node.output[0]: node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found = []
    for node in model.graph.node:
        if node.op_type != "Add" or not all(dequantized.get(name) in scalars for name in node.input):
            continue
        behind = readers.get(node.output[0], [])
        while len(behind) == 1 and behind[0].op_type in ABSORBED:
            behind = readers.get(behind[0].output[0], [])
        if len(behind) == 1 and behind[0].op_type == "QuantizeLinear" and behind[0].input[1] in scalars:
            first, second = (dequantized[name] for name in node.input)
            found.append(Sum((first, second), behind[0].input[1]))
    return found


def chains(sums: Iterable[Sum]) -> list[list[Sum]]:
    """Sums that share scales, directly or through others, in the given order."""
    found: list[list[Sum]] = []
    for each in sums:
        joined = [chain for chain in found if any(not set(each.scales).isdisjoint(other.scales) for other in chain)]
        found = [chain for chain in found if chain not in joined]
        found.append([*(other for chain in joined for other in chain), each])
    return found


def aligned_scales(model: onnx.ModelProto, scales: Mapping[str, Tensor]) -> dict[str, str]:
    """By scale of a sum whose three scales are equal, the one that stands for all that are equal with it."""
    alike = [each for each in find_sums(model) if len({float(scales[name]) for name in each.scales}) == 1]
    return {name: chain[0].total for chain in chains(alike) for each in chain for name in each.scales}


class SumAligner:
    """Finds sums that lose less with one scale than with their own.

    executor: of `model`, the simulated graph. activations: its quantizers of activations. samples: what is lost is
    measured on.
    """

    def __init__(
        self,
        executor: Executor,
        model: onnx.ModelProto,
        activations: Mapping[str, Quantizer],
        heads: Sequence[Head],
        losses: Sequence[Loss],
        samples: Samples,
        progress: Progress | None = None,
    ) -> None:
        self.executor = executor
        fixed = {site.scale for site in activations.values() if site.fixed}
        self.chains = chains(each for each in find_sums(model) if fixed.isdisjoint(each.scales))
        self.sites = {site.scale: site for site in activations.values()}
        self.heads, self.losses = heads, losses
        self.samples = samples
        self.progress = progress
        self._tried = 0

    def scales(self) -> dict[str, Tensor]:
        """New scales by initializer.

        For each chain of sums with a narrow tensor one scale is looked for among those that its tensors have, then
        sums at both ends of the chain are left out while that helps. The best is kept where the divergence from the
        float scores falls by more than one standard error of its difference, sample by sample.
        """
        found: dict[str, Tensor] = {}
        for chain in self.chains:
            if not any(name in self.sites and self.sites[name].narrow for each in chain for name in each.scales):
                continue
            best = self._best(chain, found)
            saved = self._divergence(found) - best.divergence
            if float(saved.mean()) > float(saved.std()) / len(saved) ** 0.5:
                found |= best.scales
        return found

    def _best(self, chain: Sequence[Sum], known: Mapping[str, Tensor]) -> _Trial:
        constants = self.executor.initializers
        own = [float(constants[name]) for each in chain for name in each.scales]
        tried = [self._trial(chain, float(s), known) for s in np.geomspace(min(own), max(own), _SCALES_TRIED)]
        best = min(tried, key=_loss)
        while len(best.sums) > 1:
            parts = (best.sums[1:], best.sums[:-1])
            shorter = min((self._trial(part, best.scale, known) for part in parts), key=_loss)
            if _loss(shorter) >= _loss(best):
                break
            best = shorter
        return min((best, *(self._trial(best.sums, best.scale * factor, known) for factor in _REFINEMENTS)), key=_loss)

    def _trial(self, sums: Sequence[Sum], scale: float, known: Mapping[str, Tensor]) -> _Trial:
        """One scale, as large as Clips in front of the quantizers allow."""
        names = dict.fromkeys(name for each in sums for name in each.scales)
        limit = min((self.sites[name].limit for name in names if name in self.sites), default=math.inf)
        value = torch.tensor(min(scale, limit), dtype=torch.float32, device=self.executor.device)
        scales = dict.fromkeys(names, value)
        return _Trial(sums, float(value), scales, self._divergence({**known, **scales}))

    def _divergence(self, values: Mapping[str, Tensor]) -> Tensor:
        """How far each sample's scores are from the float ones, float64 [samples]; where not all heads' scores count
        samples alike, of all samples of a pass together."""
        names = [head.tensor for head in self.heads]
        parts = []
        with torch.no_grad():
            for feeds, expected in self.samples:
                found = self.executor.run({**feeds, **values}, names)
                each = [
                    loss.divergence(expected[name], found[name]).double()
                    for name, loss in zip(names, self.losses, strict=True)
                ]
                if len({len(divergence) for divergence in each}) > 1:
                    each = [divergence.mean().reshape(1) for divergence in each]
                parts.append(torch.stack(each).sum(0).cpu())
        self._tried += 1
        if self.progress is not None:
            self.progress("scales of sums", self._tried, None)
        return torch.cat(parts)


@dataclass(frozen=True, eq=False)
class _Trial:
    """Sums with one scale: its values by initializer, and the divergence of each sample."""

    sums: Sequence[Sum]
    scale: float
    scales: dict[str, Tensor]
    divergence: Tensor


def _loss(trial: _Trial) -> float:
    return float(trial.divergence.mean())
