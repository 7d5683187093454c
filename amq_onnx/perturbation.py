"""What quantizing one site changes, where it enters the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from amq_onnx.executor.interpreter import Executor
from amq_onnx.quantizer.encoding import Encoding


class Perturbation(Protocol):
    """A site at some widths.

    entries: the tensors through which it reaches the outputs. reads: what `quantized` must be given beside them.
    """

    entries: tuple[str, ...]
    reads: tuple[str, ...]

    @property
    def widths(self) -> Sequence[int]:
        """Widths that it knows."""
        ...

    def quantized(self, bits: int, found: Mapping[str, Tensor], *, apart: bool = False) -> dict[str, Tensor]:
        """The entries with this site alone at `bits` bits. found: tensors of the float graph, by name.

        apart: each entry as if the others were as in the float graph, so that first-order effects add up.
        """
        ...


class QuantizedActivation:
    """An activation, which is its own entry."""

    def __init__(self, name: str, encodings: Mapping[int, Encoding]) -> None:
        self.entries: tuple[str, ...] = (name,)
        self.reads: tuple[str, ...] = ()
        self.encodings = encodings

    @property
    def widths(self) -> Sequence[int]:
        """See Perturbation."""
        return list(self.encodings)

    def quantized(self, bits: int, found: Mapping[str, Tensor], *, apart: bool = False) -> dict[str, Tensor]:
        """See Perturbation."""
        (name,) = self.entries
        return {name: round_trip(found[name], self.encodings[bits])}


class QuantizedWeight:
    """A weight, whose entries are the outputs of the layers that read it.

    values: by bits, the weight as it is quantized. shifts: by bits and entry, what a layer's bias makes up for, [its
    channels]; channel_axes: by entry, the dimension of these.
    """

    def __init__(
        self,
        executor: Executor,
        name: str,
        entries: Sequence[str],
        values: Mapping[int, Tensor],
        shifts: Mapping[int, Mapping[str, Tensor]],
        channel_axes: Mapping[str, int],
    ) -> None:
        self.executor = executor
        self.name = name
        self.entries = tuple(entries)
        self.values = values
        self.shifts = shifts
        self.channel_axes = channel_axes
        self._given: dict[str, tuple[str, ...]] = {}
        for entry in self.entries:
            # What reaches an entry through another one is that one's effect: it is given, changed or as it was.
            others = [other for other in self.entries if other != entry]
            self._given[entry] = (*executor.unchanged([name, *others], [entry]), *others)
        self.reads = tuple(dict.fromkeys(name for names in self._given.values() for name in names))

    @property
    def widths(self) -> Sequence[int]:
        """See Perturbation."""
        return list(self.values)

    def quantized(self, bits: int, found: Mapping[str, Tensor], *, apart: bool = False) -> dict[str, Tensor]:
        """See Perturbation."""
        changed: dict[str, Tensor] = {}
        for entry, names in self._given.items():
            known = found if apart else {**found, **changed}
            given = {name: known[name] for name in names} | {self.name: self.values[bits]}
            value = self.executor.run(given, [entry])[entry]
            if entry in self.shifts[bits]:
                shape = [1] * value.ndim
                shape[self.channel_axes[entry]] = -1
                value = value - self.shifts[bits][entry].reshape(shape)
            changed[entry] = value
        return changed


def round_trip(values: Tensor, encoding: Encoding) -> Tensor:
    """`values` as they are after quantization, with one scale for all."""
    low, high = encoding.code_range
    scale, zero = float(encoding.scale), encoding.zero_point
    return (values / scale).round_().clamp_(low - zero, high - zero).mul_(scale)
