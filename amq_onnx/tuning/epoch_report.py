"""What an epoch of fine-tuning gave, and whether it is the one to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochReport:
    """An epoch: the mean loss of its steps, and afterwards agreement with the float graph (None where no head has
    classes) and divergence from it, on the samples held out. The first is that of the start and has no loss.

    kept: whether it was the best so far. accuracy: agreement with the labels, where they join in.
    """

    loss: float
    agreement: float | None
    divergence: float
    kept: bool = False
    accuracy: float | None = None

    def better_than(self, other: EpochReport, samples: int) -> bool:
        """By agreement where it differs by two standard errors of the `samples` held out, else by divergence, which
        knows more than which class is first.

        Where labels join in, by accuracy in the same way, and else the later one, whose steps were smaller: of a graph
        that learns from labels the divergence says less, since it leaves the float graph where that is wrong.
        """
        if self.accuracy is not None and other.accuracy is not None:
            return self.accuracy >= other.accuracy - _noise(other.accuracy, samples)
        own, others = self.agreement or 0.0, other.agreement or 0.0
        return own > others if abs(own - others) > _noise(others, samples) else self.divergence < other.divergence


def is_best(report: EpochReport, before: Sequence[EpochReport], samples: int) -> bool:
    """Whether an epoch is the best so far, judged on `samples`; `before`: those before it, the start first."""
    kept = [other for other in before if other.kept]
    if not kept:
        return True
    if report.accuracy is not None:  # beside the most accurate, so that small losses don't add up
        return report.better_than(max(kept, key=lambda other: other.accuracy or 0.0), samples)
    return report.better_than(kept[-1], samples) and (report.agreement or 0) >= (before[0].agreement or 0)


def _noise(share: float, samples: int) -> float:
    """Two standard errors of a share of `samples`."""
    return 2 * math.sqrt(share * (1 - share) / samples)
