"""Rounding one weight after another, against closed forms and rounding to nearest."""

import numpy as np
import pytest

from amq_onnx.quantizer.affine import quantize, round_trip
from amq_onnx.quantizer.encoding import Encoding, code_range
from amq_onnx.quantizer.output_error import OutputError
from amq_onnx.quantizer.sequential_rounding import sequentially_rounded
from amq_onnx.quantizer.weight_ranges import weight_encodings

rng = np.random.default_rng(5)


def correlated(groups, count, elements):
    mixing = rng.standard_normal((groups, elements, elements)) / np.sqrt(elements) + 0.5
    return (rng.standard_normal((groups, count, elements)) @ mixing).astype(np.float32)


def test_weights_of_unrelated_inputs_are_rounded_to_nearest():
    weight = rng.standard_normal((5, 70)).astype(np.float32)
    encodings = weight_encodings(weight, 0, [2, 3, 5]).encodings
    error = OutputError(np.diag(rng.uniform(0.1, 3, 70)).astype(np.float32)[None], np.zeros(1, np.float32))
    for bits, rounded in sequentially_rounded(weight, 0, encodings, error).items():
        np.testing.assert_array_equal(rounded, round_trip(weight, encodings[bits]))


def test_of_inputs_that_are_all_alike_errors_add_up_to_less_than_half_a_step():
    weight = rng.uniform(-0.7, 0.7, (6, 200)).astype(np.float32)
    encoding = Encoding(3, signed=True, scale=np.full(6, 0.25, np.float32), axis=0)
    error = OutputError(np.ones((1, 1, 200), np.float32), np.full(1, 1e-4, np.float32))
    rounded = sequentially_rounded(weight, 0, {3: encoding}, error)[3]
    sums = np.abs((rounded - weight).sum(1))
    assert sums.max() < 0.13  # to nearest they are ten times that
    assert np.abs((round_trip(weight, encoding) - weight).sum(1)).max() > 0.5


@pytest.mark.parametrize(("groups", "axis"), [(1, 0), (3, 0), (1, 2), (1, None)])
def test_outputs_err_less_with_codes_that_the_encoding_has(groups, axis):
    channels, elements = 12, 90
    seen = correlated(groups, 600, elements if axis is not None else channels * elements)
    rows = rng.standard_normal((channels, elements)).astype(np.float32)
    shape = (channels, 9, 10)
    weight = np.ascontiguousarray(np.moveaxis(rows.reshape(shape), 0, axis or 0))
    error = OutputError.from_rows(seen, centred=False)
    encodings = weight_encodings(weight, axis, [1, 2, 4]).encodings
    for bits, rounded in sequentially_rounded(weight, axis, encodings, error).items():
        encoding = encodings[bits]
        np.testing.assert_array_equal(rounded, round_trip(rounded, encoding))
        codes = quantize(rounded, encoding)
        low, high = code_range(bits, signed=True)
        assert codes.min() >= low and codes.max() <= high
        costs = []
        for found in (rounded, round_trip(weight, encoding)):
            moved = found - weight if axis is None else np.moveaxis(found - weight, axis, 0)
            difference = moved.reshape(1 if axis is None else channels, -1)
            costs.append(error.product(difference, difference).sum())
        assert costs[0] <= costs[1]
        # Codes of 1 bit are all clipped, and a single channel to nearest may be right by luck.
        assert bits == 1 or axis is None or costs[0] < 0.8 * costs[1]


def test_inputs_that_are_zero_leave_rounding_to_nearest():
    weight = rng.standard_normal((4, 7)).astype(np.float32)
    encodings = weight_encodings(weight, 0, [3]).encodings
    error = OutputError.from_rows(np.zeros((1, 20, 7), np.float32), centred=True)
    rounded = sequentially_rounded(weight, 0, encodings, error)[3]
    np.testing.assert_array_equal(rounded, round_trip(weight, encodings[3]))
