"""How sensitivity can be measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from amq_onnx.errors import UsageError
from amq_onnx.quantizer.encoding import RangeMethod
from amq_onnx.sensitivity import Rounding
from amq_onnx.site_losses import LOSS_METHODS

Method = Literal["hybrid", "quadratic", "measured", "gauss-newton", "hessian", "eigenvalue", "norm"]
"""How sensitivity is measured: see `measure_losses` for the first three, `measure_traces` for the next two. The others
are those of AMQ's rivals: `eigenvalue` multiplies ||Q(W) - W||^2 with the largest eigenvalue instead of the mean trace
(HAWQ), `norm` with nothing."""

METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class SensitivityOptions:
    """How sensitivity is measured.

    method: one of METHODS; only `hessian` needs labels. relative_error, max_probes: of traces. samples: on how many of
    the calibration samples, at most, losses or curvature are measured; ranges always see all. correct_biases: measure
    what biases need to make up for the mean error of rounded weights. weigh_inputs: weights take the scales of the
    least error of their layers' outputs, not their own. rounding: of which rounding losses are, where they are
    measured; None for that of the tuning that follows, else to nearest. channels: keep traces and errors of each output
    channel, so that widths can be chosen for each. float_where_needed: leave activations float that 8 bits are not
    enough for (see outweighing).
    """

    method: Method = "hybrid"
    loss: str = "auto"
    ranges: RangeMethod = "curvature"
    relative_error: float = 0.05
    max_probes: int = 128
    samples: int = 256
    seed: int = 0
    device: str = "cpu"
    correct_biases: bool = True
    weigh_inputs: bool = True
    rounding: Rounding | None = None
    channels: bool = False
    float_where_needed: bool = True

    def before(self, *, learning: bool) -> SensitivityOptions:
        """These, of the rounding that follows where none was asked for. learning: whether rounding is learned then.

        Raises UsageError where losses of learned rounding were asked of a method that measures none.
        """
        if self.rounding == "learned" and not self.learns:
            named = ", ".join(LOSS_METHODS)
            raise UsageError(
                f"--rounding learned is for losses that are measured, and {self.method} measures none: use "
                f"--sensitivity {named}, or leave out --rounding"
            )
        return replace(self, rounding=self.rounding or ("learned" if learning else "nearest"))

    @property
    def learns(self) -> bool:
        """Whether losses are those of learned rounding."""
        return self.rounding == "learned" and self.method in LOSS_METHODS

    @property
    def weighs(self) -> bool:
        """Whether scales follow from the errors of layers' outputs."""
        return self.weigh_inputs and self.ranges in ("curvature", "mse")
