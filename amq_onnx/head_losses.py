"""The loss of each of a model's heads, as torch computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from amq_onnx.calibration import calibrate
from amq_onnx.curvature.losses import Loss, SigmoidLoss, SoftmaxLoss, SquaredLoss
from amq_onnx.errors import DataError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import LABELS, Batch, Dataset
from amq_onnx.model.heads import Head


def losses_for(heads: Sequence[Head], mean_square: Mapping[str, float]) -> list[Loss]:
    """The loss of each head; squared errors are relative to the output's mean square."""
    found: list[Loss] = []
    for head in heads:
        match head.loss:
            case "softmax":
                found.append(SoftmaxLoss(head.axis))
            case "sigmoid":
                found.append(SigmoidLoss())
            case "squared":
                found.append(SquaredLoss(1.0 / max(mean_square[head.tensor], 1e-30)))
    return found


def losses_on(executor: Executor, data: Dataset, heads: Sequence[Head]) -> list[Loss]:
    """`losses_for` the heads, from a pass over the data where a loss is relative to its output."""
    relative = [head.tensor for head in heads if head.loss == "squared"]
    return losses_for(heads, calibrate(executor, data, [], relative).mean_square if relative else {})


def labelled_losses(
    executor: Executor, scores: Sequence[Tensor], losses: Sequence[Loss], batch: Batch, otherwise: str
) -> Tensor:
    """The losses of all heads against the labels of `batch`, summed over its samples.

    Raises DataError, saying that `otherwise` is the option to use, where there are no labels.
    """
    if LABELS not in batch or LABELS in executor.inputs:
        raise DataError(f"the Hessian needs `labels` in the data: add them, or use {otherwise}")
    target = torch.from_numpy(np.asarray(batch[LABELS])).to(executor.device)
    return torch.stack([loss.value(score, target).sum() for loss, score in zip(losses, scores, strict=True)]).sum()
