"""Losses on a tensor of scores: their value, and a square root of their Hessian in the scores.

The Hessian of a loss l(z) in the scores z is H = L L'. For the losses here L is known in closed form, and it
doesn't depend on the target, so that no label is needed. With v of zero mean and unit covariance, J' L v has
covariance J' H J, the Gauss-Newton matrix (Schraudolph 2002, "Fast curvature matrix-vector products").

Every loss is that of one sample, summed over the batch; where a sample has several positions (tokens, pixels),
it is the mean over them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amq_onnx.curvature.draws import draw_classes, rademacher_like
from amq_onnx.errors import DataError


class Loss(Protocol):
    """A convex loss on scores whose first dimension counts samples."""

    def value(self, scores: Tensor, target: Tensor) -> Tensor:
        """Loss of each sample, shape [samples]. Raises DataError for a target that doesn't fit."""
        ...

    def divergence(self, reference: Tensor, scores: Tensor) -> Tensor:
        """What `scores` lose against `reference`, of the same shape, where those are the truth: [samples], 0 or more.

        Its Hessian in `scores` at `reference` is H.
        """
        ...

    def distance(self, reference: Tensor, scores: Tensor) -> Tensor:
        """How far `scores` are from `reference`, [samples]: what a student learns from.

        Of classes of which one is right, the limit of `divergence` times T^2 for scores over a large temperature T
        (Hinton et al. 2015, arXiv 1503.02531, section 2.1): where the reference is sure of a class the divergence all
        but vanishes; this one does not.
        """
        ...

    def root_product(self, scores: Tensor, vector: Tensor) -> Tensor:
        """L v: `scores` and `vector` have the same shape, and so has the result."""
        ...

    def root_draw(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """L v for a random v of zero mean and unit covariance, independent between samples and positions."""
        ...

    def trace(self, scores: Tensor) -> Tensor:
        """Trace of each sample's H, float64 [samples]."""
        ...


@dataclass(frozen=True)
class SoftmaxLoss:
    """Cross-entropy of softmax scores along `axis`.

    H = diag(p) - p p' = L L' with L = diag(sqrt p) - p sqrt(p)'.
    """

    axis: int = -1

    def value(self, scores: Tensor, target: Tensor) -> Tensor:
        """See Loss. target: class numbers, in the shape of the scores without `axis`, or shares of classes, floats in
        the shape of the scores."""
        logs = torch.log_softmax(scores, self.axis)
        if target.is_floating_point() and target.shape == scores.shape:
            chosen = (target * logs).sum(self.axis)
        else:
            self._require_numbers(target, scores)
            chosen = logs.gather(self.axis, target.long().unsqueeze(self.axis))
        return -_by_sample(chosen, scores).mean(1)

    def _require_numbers(self, target: Tensor, scores: Tensor) -> None:
        """Raise DataError unless `target` has a class number for every position of `scores`."""
        classes = scores.shape[self.axis]
        expected = list(scores.shape)
        del expected[self.axis]
        if list(target.shape) != expected:
            raise DataError(
                f"labels have shape {list(target.shape)}, but the model's scores need numbers of classes in {expected} "
                f"or shares of classes in {list(scores.shape)}"
            )
        if target.numel() and not (int(target.min()) >= 0 and int(target.max()) < classes):
            raise DataError(
                f"labels run from {int(target.min())} to {int(target.max())}, but the model has {classes} classes"
            )

    def divergence(self, reference: Tensor, scores: Tensor) -> Tensor:
        """See Loss: KL(softmax(reference) || softmax(scores)), the mean over positions."""
        expected = torch.log_softmax(reference, self.axis)
        each = expected.exp() * (expected - torch.log_softmax(scores, self.axis))
        return _by_sample(each.sum(self.axis), scores).mean(1)

    def distance(self, reference: Tensor, scores: Tensor) -> Tensor:
        """See Loss: half the variance of the differences over classes."""
        difference = scores - reference
        difference = difference - difference.mean(self.axis, keepdim=True)
        return 0.5 * _by_sample(difference.square(), scores).mean(1)

    def root_product(self, scores: Tensor, vector: Tensor) -> Tensor:
        """See Loss."""
        probability = torch.softmax(scores, self.axis)
        root = probability.sqrt()
        product = root * vector - probability * (root * vector).sum(self.axis, keepdim=True)
        return product * _position_weight(scores, scores.shape[self.axis])

    def root_draw(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """See Loss. v = s e_c / sqrt(q_c): one class c, drawn with chance q_c, and a random sign s.

        E v v' = sum_c q_c e_c e_c' / q_c = I. With q_c in proportion to ||L e_c||^2 = p_c ||e_c - p||^2 every
        draw has the same length ||L v||, so what varies between draws is the network's Jacobian alone: two
        competing classes, the common case, give no variance at all, where Rademacher signs give 100 %.
        """
        probability = torch.softmax(scores, self.axis).movedim(self.axis, -1)
        flat = probability.reshape(-1, probability.shape[-1])
        # Where p is a unit vector to the last bit, L is zero and any class will do.
        chance = (flat * (1 - 2 * flat + flat.square().sum(1, keepdim=True))).clamp_min(1e-30).cpu()
        chance = chance / chance.sum(1, keepdim=True)
        drawn = draw_classes(chance, generator)
        sign = rademacher_like(chance.gather(1, drawn), generator)
        vector = torch.zeros_like(chance).scatter_(1, drawn, sign / chance.gather(1, drawn).sqrt())
        vector = vector.to(scores.device).reshape(probability.shape).movedim(-1, self.axis)
        return self.root_product(scores, vector)

    def trace(self, scores: Tensor) -> Tensor:
        """See Loss. 1 - ||p||^2, averaged over positions."""
        probability = torch.softmax(scores.double(), self.axis)
        return _by_sample((1 - probability.square().sum(self.axis)).clamp_min_(0), scores).mean(1)


@dataclass(frozen=True)
class SigmoidLoss:
    """Binary cross-entropy of each score, summed over a sample's last dimension; H = diag(p (1 - p))."""

    def value(self, scores: Tensor, target: Tensor) -> Tensor:
        """See Loss. target: 0 or 1 for every score, in their shape."""
        if scores.numel() != target.numel():
            raise DataError(f"labels have shape {list(target.shape)}, but the model's scores {list(scores.shape)}")
        each = torch.nn.functional.softplus(scores) - scores * target.reshape(scores.shape).to(scores.dtype)
        return _by_sample(each, scores).sum(1) * _position_weight(scores, _last(scores)) ** 2

    def divergence(self, reference: Tensor, scores: Tensor) -> Tensor:
        """See Loss: KL of the two Bernoulli variables of each score, summed over a sample's last dimension."""
        softplus = torch.nn.functional.softplus
        each = torch.sigmoid(reference) * (reference - scores) + softplus(scores) - softplus(reference)
        return _by_sample(each, scores).sum(1) * _position_weight(scores, _last(scores)) ** 2

    def distance(self, reference: Tensor, scores: Tensor) -> Tensor:
        """See Loss: the divergence. Nearly all scores of a detector are far below any threshold, and what the others
        would be moved by is lost among them where all count alike."""
        return self.divergence(reference, scores)

    def root_product(self, scores: Tensor, vector: Tensor) -> Tensor:
        """See Loss."""
        probability = torch.sigmoid(scores)
        spread = (probability * (1 - probability)).sqrt()
        return spread * vector * _position_weight(scores, _last(scores))

    def root_draw(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """See Loss. v is Rademacher."""
        return self.root_product(scores, rademacher_like(scores, generator))

    def trace(self, scores: Tensor) -> Tensor:
        """See Loss."""
        probability = torch.sigmoid(scores.double())
        each = probability * (1 - probability)
        return _by_sample(each, scores).sum(1) * _position_weight(scores, _last(scores)) ** 2


@dataclass(frozen=True)
class SquaredLoss:
    """scale / 2 * ||scores - target||^2 of each sample; H = scale * I.

    With scale = 1 / E ||scores||^2 it is half the relative squared error, comparable between outputs.
    """

    scale: float = 1.0

    def value(self, scores: Tensor, target: Tensor) -> Tensor:
        """See Loss. target: in the shape of the scores."""
        if scores.numel() != target.numel():
            raise DataError(f"labels have shape {list(target.shape)}, but the model's output {list(scores.shape)}")
        difference = scores - target.reshape(scores.shape).to(scores.dtype)
        return 0.5 * self.scale * _by_sample(difference, scores).square().sum(1)

    def divergence(self, reference: Tensor, scores: Tensor) -> Tensor:
        """See Loss."""
        return self.value(scores, reference)

    def distance(self, reference: Tensor, scores: Tensor) -> Tensor:
        """See Loss: the divergence, whatever the temperature."""
        return self.value(scores, reference)

    def root_product(self, scores: Tensor, vector: Tensor) -> Tensor:
        """See Loss."""
        return vector * math.sqrt(self.scale)

    def root_draw(self, scores: Tensor, generator: torch.Generator) -> Tensor:
        """See Loss. v is Rademacher."""
        return self.root_product(scores, rademacher_like(scores, generator))

    def trace(self, scores: Tensor) -> Tensor:
        """See Loss."""
        samples = _samples(scores)
        elements = scores.numel() // max(1, samples)
        return torch.full((samples,), self.scale * elements, dtype=torch.float64, device=scores.device)


def _samples(scores: Tensor) -> int:
    """The first dimension; scores without any are one sample's."""
    return len(scores) if scores.ndim else 1


def _by_sample(values: Tensor, scores: Tensor) -> Tensor:
    """Values, computed from scores, as [samples, values of a sample]."""
    return values.reshape(_samples(scores), -1)


def _last(scores: Tensor) -> int:
    return int(scores.shape[-1]) if scores.ndim > 1 else 1


def _position_weight(scores: Tensor, classes: int) -> float:
    """Square root of 1 / positions: the mean over the positions of a sample."""
    positions = scores.numel() // max(1, _samples(scores) * classes)
    return math.sqrt(1 / max(1, positions))
