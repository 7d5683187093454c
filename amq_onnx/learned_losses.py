"""What learned rounding will leave of a weight's loss, told without learning.

Learning each weight at each width would take hours. Instead weights are rounded one after another, each making up for
the errors of those before, as learning does within a layer. And what learning leaves is no more than Ω, the loss of
errors of twice their square in random directions: codes that are learned are farther from the weights than the nearest,
but the directions of errors to nearest, which may be much worse than any at random, are what learning mends first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.quantizer.held_codes import HeldCodes
from amq_onnx.quantizer.output_error import OutputError
from amq_onnx.quantizer.sequential_rounding import sequentially_rounded
from amq_onnx.quantizer.weight_ranges import MOST_BITS_FOR_OUTPUTS
from amq_onnx.traces import Trace


def rounded_weight(
    values: NDArray[np.float32], axis: int | None, encodings: Mapping[int, Encoding], error: OutputError | None
) -> HeldCodes:
    """A weight after quantization, by bits: to nearest, or one after another where `error` says what that is worth.

    axis: of its output channels.
    """
    narrow = {bits: encoding for bits, encoding in encodings.items() if bits <= MOST_BITS_FOR_OUTPUTS}
    found = sequentially_rounded(values, axis, narrow, error) if error is not None and narrow else {}
    found |= {bits: round_trip(values, encodings[bits]) for bits in encodings.keys() - found.keys()}
    return HeldCodes(found, encodings)


def bounded(loss: tuple[float, float], squared_error: float, trace: Trace) -> tuple[float, float]:
    """A weight's loss and its standard error, or Ω and its where that is less.

    squared_error: ||Q(W) - W||^2, to nearest. trace: of the weight's block.
    """
    error = squared_error / trace.elements
    return min(loss, (trace.trace * error, trace.error * error))
