"""What each site of a prepared model does at each of its widths, with what biases make up for."""

from __future__ import annotations

from collections.abc import Mapping

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
        at = {name: by_bits[bits] for name, by_bits in weights.items() if bits in by_bits}
        found = corrections(prepared, at, expected_inputs)
        shifts[bits] = {output: torch.from_numpy(shift).to(executor.device) for output, shift in found.items()}
    axes = {layer.output: 1 if layer.operator in ("Conv", "ConvTranspose") else -1 for layer in prepared.layers}
    sites: dict[str, Perturbation] = {}
    for name, by_bits in weights.items():
        quantized = {bits: torch.from_numpy(values).to(executor.device) for bits, values in by_bits.items()}
        sites[name] = QuantizedWeight(executor, name, executor.entries(name), quantized, shifts, axes)
    return sites | {name: QuantizedActivation(name, by_bits) for name, by_bits in activations.items()}
