"""What `quantize` makes, as plain data that the command line and the report read."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from amq_onnx.compiler import FrontierPoint
from amq_onnx.plan import Plan
from amq_onnx.runtime.verification import Verification
from amq_onnx.sensitivity import Sensitivity
from amq_onnx.site_losses import SiteLosses
from amq_onnx.size_search import Trial
from amq_onnx.tuning.rounding import Tuned


@dataclass(frozen=True, eq=False)
class Result:
    """What `quantize` made.

    float_bits: of a weight in the float file, in the mean. budget: bytes that `size` allows, None where `max_drop`
    alone decided. trials: the files that were evaluated for it, in turn. verification: None where there were no data to
    verify on. tuned: what was learned once the widths were chosen, None for nothing. frontier, measured: the best plans
    of all sizes, and what each site at its chosen width really adds to the loss, by itself, with learned weights where
    the sensitivity's losses are of these, else rounded to nearest; both only where `details` were asked for, the second
    only where there are data.
    """

    model: onnx.ModelProto
    plan: Plan
    sensitivity: Sensitivity
    bytes: int
    float_bytes: int
    float_bits: float
    budget: int | None
    predicted_bytes: int
    perturbation: float
    shares: dict[str, float] = field(default_factory=dict)
    oldest_runtime: str = ""
    verification: Verification | None = None
    trials: tuple[Trial, ...] = ()
    tuned: Tuned | None = None
    frontier: tuple[FrontierPoint, ...] = ()
    measured: SiteLosses | None = None
