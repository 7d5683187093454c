"""Several quantized forms of one tensor, in a fraction of their memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.affine import dequantize, quantize
from amq_onnx.quantizer.encoding import Encoding


class HeldCodes(Mapping[int, NDArray[np.float32]]):
    """A tensor after quantization, by bits, each held as its codes: a byte an element, two above 8 bits.

    values: float32 in one shape, by bits: numbers that `encodings` have codes for, and that come back when asked for.
    """

    def __init__(self, values: Mapping[int, NDArray[np.float32]], encodings: Mapping[int, Encoding]) -> None:
        self._encodings = {bits: encodings[bits] for bits in values}
        self._codes: dict[int, NDArray[np.int8 | np.int16]] = {}
        for bits, array in values.items():
            codes = quantize(array, encodings[bits])
            self._codes[bits] = codes.astype(np.int8 if encodings[bits].signed and bits <= 8 else np.int16)

    def __getitem__(self, bits: int) -> NDArray[np.float32]:
        """A new array."""
        return dequantize(self._codes[bits].astype(np.int32), self._encodings[bits])

    def __iter__(self) -> Iterator[int]:
        return iter(self._codes)

    def __len__(self) -> int:
        return len(self._codes)
