"""Losses of classifiers."""

from __future__ import annotations

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import operator


def _negative_log_likelihood(node: NodeContext, x: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """x [N, C, *], target [N, *] -> [N, *] or a scalar; the mean is that of the weights."""
    ignored = node.attributes.get("ignore_index")
    labels = target.to(torch.int64)
    factor = torch.ones(labels.shape, dtype=x.dtype, device=x.device)
    if ignored is not None:
        factor = (labels != int(ignored)).to(x.dtype)
        labels = torch.where(labels == int(ignored), 0, labels)
    if weight is not None:
        factor = factor * weight[labels]
    loss = -torch.gather(x, 1, labels.unsqueeze(1)).squeeze(1) * factor
    reduction = node.text("reduction", "mean")
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / factor.sum()


@operator("NegativeLogLikelihoodLoss")
def negative_log_likelihood_loss(node: NodeContext, x: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Log probabilities x [N, C, *] and classes target [N, *] -> [N, *], or a scalar if reduced."""
    return _negative_log_likelihood(node, x, target, weight)


@operator("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy_loss(
    node: NodeContext, scores: Tensor, target: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Scores [N, C, *] and classes [N, *] -> the loss, [N, *] or a scalar, and the log probabilities [N, C, *]."""
    logarithms = torch.log_softmax(scores, 1)
    return _negative_log_likelihood(node, logarithms, target, weight), logarithms
