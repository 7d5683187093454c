"""Affine rounding, bit for bit as ONNX QuantizeLinear and DequantizeLinear compute it in onnxruntime."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.encoding import Encoding


def broadcast_scale(encoding: Encoding, rank: int) -> NDArray[np.float32]:
    """The scale shaped to broadcast against a tensor of `rank` dimensions."""
    if encoding.axis is None:
        return encoding.scale
    shape = [1] * rank
    shape[encoding.axis] = -1
    return encoding.scale.reshape(shape)


def quantize(values: NDArray[np.float32], encoding: Encoding) -> NDArray[np.int32]:
    """Codes `clip(rint(values / scale) + zero_point)`, int32, in the shape of `values`.

    Division in float32 and rounding half to even are what onnxruntime does; a product with 1/scale differs.
    """
    with np.errstate(over="ignore"):  # an infinite quotient is clipped like any other
        codes = np.divide(values, broadcast_scale(encoding, values.ndim), dtype=np.float32)
    np.rint(codes, out=codes)
    # The float clip comes before the integer cast, so that huge quotients can't wrap around.
    low, high = encoding.code_bounds(values.ndim)
    np.clip(codes, low - encoding.zero_point, high - encoding.zero_point, out=codes)
    return codes.astype(np.int32) + np.int32(encoding.zero_point)


def dequantize(codes: NDArray[np.int32], encoding: Encoding) -> NDArray[np.float32]:
    """Real numbers `scale * (codes - zero_point)`, float32, in the shape of `codes`."""
    centred = (codes - np.int32(encoding.zero_point)).astype(np.float32)
    return centred * broadcast_scale(encoding, codes.ndim)


def round_trip(values: NDArray[np.float32], encoding: Encoding) -> NDArray[np.float32]:
    """`values` as they are after quantization."""
    return dequantize(quantize(values, encoding), encoding)
