"""What each site of a prepared model does at each of its widths, with what biases make up for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from amq_onnx.executor.interpreter import Executor
from amq_onnx.perturbation import Perturbation, QuantizedActivation, QuantizedWeight
from amq_onnx.plan import corrections
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.rewriting import Prepared


def perturbations(
    executor: Executor,
    prepared: Prepared,
    weights: Mapping[str, Mapping[int, NDArray[np.float32]]],
    activations: Mapping[str, Mapping[int, Encoding]],
    expected_inputs: Mapping[str, NDArray[np.float32]],
) -> dict[str, Perturbation]:
    """Of each site by its name, what it does at its widths; biases correct where expected inputs are known.

    weights: by name and bits, as they are after quantization. activations: encodings by name and bits.
    """
    shifts: dict[int, dict[str, torch.Tensor]] = {}
    for bits in {bits for by_bits in weights.values() for bits in by_bits}:
        shifts[bits] = {}
        for name, by_bits in weights.items():
            found = corrections(prepared, {name: by_bits[bits]} if bits in by_bits else {}, expected_inputs)
            shifts[bits] |= {output: torch.from_numpy(shift).to(executor.device) for output, shift in found.items()}
    axes = {layer.output: 1 if layer.operator in ("Conv", "ConvTranspose") else -1 for layer in prepared.layers}
    sites: dict[str, Perturbation] = {}
    for name, by_bits in weights.items():
        quantized = _Tensors(by_bits, executor.device)
        sites[name] = QuantizedWeight(executor, name, executor.entries(name), quantized, shifts, axes)
    return sites | {name: QuantizedActivation(name, by_bits) for name, by_bits in activations.items()}


class _Tensors(Mapping[int, torch.Tensor]):
    """Arrays as tensors, made when they are asked for: all widths of all weights would be several times the model."""

    def __init__(self, arrays: Mapping[int, NDArray[np.float32]], device: str | torch.device) -> None:
        self.arrays = arrays
        self.device = device

    def __getitem__(self, bits: int) -> torch.Tensor:
        return torch.from_numpy(self.arrays[bits]).to(self.device)

    def __iter__(self) -> Iterator[int]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)
