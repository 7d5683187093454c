import numpy as np
import pytest

from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.quantizer.held_codes import HeldCodes
from amq_onnx.quantizer.weight_ranges import weight_encodings


@pytest.mark.parametrize("axis", [None, 0, 1])
def test_every_width_comes_back_bit_for_bit(axis):
    weight = np.random.default_rng(3).standard_normal((6, 5, 3)).astype(np.float32)
    encodings = weight_encodings(weight, axis, range(1, 9)).encodings
    values = {bits: round_trip(weight, encoding) for bits, encoding in encodings.items()}
    held = HeldCodes(values, encodings)
    assert list(held) == list(values)
    for bits, known in values.items():
        np.testing.assert_array_equal(held[bits], known)


def test_codes_of_more_than_a_byte():
    weight = np.random.default_rng(4).standard_normal((6, 5)).astype(np.float32)
    encodings = {
        16: Encoding(16, signed=True, scale=np.float32(1e-3)),
        8: Encoding(8, signed=False, scale=np.float32(1e-2)),
    }
    values = {bits: round_trip(weight, encoding) for bits, encoding in encodings.items()}
    for bits, known in values.items():
        np.testing.assert_array_equal(HeldCodes(values, encodings)[bits], known)
