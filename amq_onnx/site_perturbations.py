"""What each site of a prepared model does at each of its widths, with what biases make up for."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from amq_onnx.executor.interpreter import Executor
from amq_onnx.perturbation import Perturbation, QuantizedActivation, QuantizedWeight
from amq_onnx.plan import corrections
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.rewriting import Prepared

K = TypeVar("K")
V = TypeVar("V")


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

    def rounded(bits: int, name: str) -> NDArray[np.float32]:
        return weights[name][bits]

    def tensor(name: str, bits: int) -> torch.Tensor:
        return torch.from_numpy(weights[name][bits]).to(executor.device)

    shifts: dict[int, dict[str, torch.Tensor]] = {}
    for bits in {bits for by_bits in weights.values() for bits in by_bits}:
        names = dict.fromkeys(name for name, by_bits in weights.items() if bits in by_bits)
        found = corrections(prepared, _AskedFor(names, partial(rounded, bits)), expected_inputs)
        shifts[bits] = {output: torch.from_numpy(shift).to(executor.device) for output, shift in found.items()}
    axes = {layer.output: 1 if layer.operator in ("Conv", "ConvTranspose") else -1 for layer in prepared.layers}
    sites: dict[str, Perturbation] = {}
    for name, by_bits in weights.items():
        quantized: Mapping[int, torch.Tensor] = _AskedFor(by_bits, partial(tensor, name))
        if torch.device(executor.device).type != "cpu":
            quantized = dict(quantized)  # moved there once, not in every run
        sites[name] = QuantizedWeight(executor, name, executor.entries(name), quantized, shifts, axes)
    return sites | {name: QuantizedActivation(name, by_bits) for name, by_bits in activations.items()}


class _AskedFor(Mapping[K, V]):
    """What `make` makes of each key, when it is asked for: all widths of all weights are several times the model."""

    def __init__(self, keys: Collection[K], make: Callable[[K], V]) -> None:
        self.names = keys
        self.make = make

    def __contains__(self, key: object) -> bool:
        # Mapping's own would make the value.
        return key in self.names

    def __getitem__(self, key: K) -> V:
        return self.make(key)

    def __iter__(self) -> Iterator[K]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)
