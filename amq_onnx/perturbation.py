"""What quantizing one site changes, where it enters the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from amq_onnx.conv_gradients import weight_gradients
from amq_onnx.curvature.quadratic_form import sample_slopes
from amq_onnx.curvature.sample_axis import SampleAxis
from amq_onnx.executor.interpreter import Executor
from amq_onnx.layout import pixels
from amq_onnx.quantizer.encoding import Encoding


@dataclass(frozen=True)
class Pulled:
    """Gradients of a batch of so many samples, by tensor, and where each tensor counts these."""

    gradients: Mapping[str, Tensor]
    axes: Mapping[str, SampleAxis | None]
    samples: int


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

    def slopes(self, pulled: Pulled, found: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """By bits, the products of gradients at the entries with what is changed there, by sample (`sample_slopes`)."""
        ...


def slopes_of_differences(site: Perturbation, pulled: Pulled, found: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """`Perturbation.slopes`, for any site: its entries are computed again at every width."""
    gradients = [pulled.gradients[entry] for entry in site.entries]
    axes = [pulled.axes[entry] for entry in site.entries]
    result: dict[int, Tensor] = {}
    for bits in site.widths:
        changed = site.quantized(bits, found, apart=True)
        differences = [changed[entry] - found[entry] for entry in site.entries]
        result[bits] = sample_slopes(gradients, differences, axes, pulled.samples)
    return result


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

    def slopes(self, pulled: Pulled, found: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """See Perturbation."""
        return slopes_of_differences(self, pulled, found)


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

    def slopes(self, pulled: Pulled, found: Mapping[str, Tensor]) -> dict[int, Tensor]:
        """See Perturbation. A Conv is linear in its weight: one gradient of that serves all widths."""
        if not all(self._is_convolved(entry, pulled) for entry in self.entries):
            return slopes_of_differences(self, pulled, found)
        weight = self.executor.initializers[self.name]
        errors = torch.stack([(self.values[bits] - weight).flatten() for bits in self.widths])
        total = torch.zeros(pulled.samples, len(self.widths), dtype=torch.float64, device=weight.device)
        for entry in self.entries:
            node, gradient = self.executor.node(entry), pulled.gradients[entry]
            parts = weight_gradients(node, found[node.inputs[0]], gradient, weight)
            total += torch.cat([part.flatten(1) @ errors.t() for part in parts])
            sums = pixels(gradient).sum(1)
            for column, bits in enumerate(self.widths):
                if entry in self.shifts[bits]:
                    total[:, column] -= sums @ self.shifts[bits][entry]
        return dict(zip(self.widths, total.unbind(1), strict=True))

    def _is_convolved(self, entry: str, pulled: Pulled) -> bool:
        """Whether an entry is made by a Conv of one group, an image a sample, at so many places that one gradient is
        less to compute than the outputs at all widths."""
        node, gradient = self.executor.node(entry), pulled.gradients[entry]
        return (
            node.op_type == "Conv"
            and node.inputs[1] == self.name
            and node.integer("group", 1) == 1
            and pulled.axes[entry] == SampleAxis(0)
            and len(gradient) == pulled.samples
            and gradient[0, 0].numel() >= len(self.widths)
        )


def round_trip(values: Tensor, encoding: Encoding) -> Tensor:
    """`values` as they are after quantization, with one scale for all."""
    low, high = encoding.code_range
    scale, zero = float(encoding.scale), encoding.zero_point
    return (values / scale).round_().clamp_(low - zero, high - zero).mul_(scale)
