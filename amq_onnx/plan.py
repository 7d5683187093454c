"""The plan: a width for every site. plan.json can be read, edited and applied on its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from amq_onnx.errors import UsageError
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.bias_shift import bias_shift
from amq_onnx.quantizer.encoding import MAX_BITS, Encoding, RangeMethod, Widths, distinct
from amq_onnx.quantizer.weight_ranges import bias_safe_scale, encoding_at
from amq_onnx.rewriting import Prepared
from amq_onnx.sensitivity import (
    Scales,
    arrays_by_name,
    json_lines,
    numbers_by_name,
    parse_versioned,
    read_scales,
    scale_numbers,
)

FORMAT = "amq-plan"
VERSION = 2


@dataclass(frozen=True)
class ActivationPlan:
    """An activation's width, and the range that its codes cover."""

    bits: int
    range: tuple[float, float]


@dataclass(frozen=True)
class Plan:
    """Widths by site; of a weight, one for all channels or one for each.

    model: fingerprint of the float model. ranges: how scales of weights are found. A weight's scales follow from the
    weight, its width and `ranges`, so that a width can be edited; `scales` holds those, of all widths measured, that
    follow from data. Corrections of biases follow from `expected_inputs`: by layer, what its weights are multiplied
    with on average (see ExpectedInputs). equalized: whether the model's channels were evened out first
    (EqualizeChannels). quantized_outputs: whether Convs may write codes that leave the graph (OutputsApart).
    """

    model: str
    ranges: RangeMethod
    weights: dict[str, Widths]
    activations: dict[str, ActivationPlan]
    left_float: dict[str, str] = field(default_factory=dict)
    expected_inputs: dict[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)
    scales: Scales = field(default_factory=dict, compare=False)
    equalized: bool = False
    quantized_outputs: bool = False

    def to_json(self) -> str:
        """The text of plan.json: a line a site."""
        body = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "ranges": self.ranges,
            "equalized": self.equalized,
            "quantized_outputs": self.quantized_outputs,
            "weights": self.weights,
            "activations": {
                name: {"bits": site.bits, "range": list(site.range)} for name, site in self.activations.items()
            },
            "left_float": self.left_float,
            "expected_inputs": numbers_by_name(self.expected_inputs),
            "scales": scale_numbers(self.scales),
        }
        return json_lines(body)

    @classmethod
    def from_json(cls, text: str, origin: str) -> Plan:
        """Read what `to_json` wrote, perhaps edited. Raises UsageError, naming `origin` and the site."""
        body = parse_versioned(text, origin, FORMAT, VERSION)
        try:
            weights = {name: _widths(bits, name, origin) for name, bits in body["weights"].items()}
            activations = {}
            for name, site in body["activations"].items():
                low, high = (float(end) for end in site["range"])
                if not (np.isfinite(low) and np.isfinite(high) and low <= high):
                    raise UsageError(f"'{origin}' gives activation '{name}' the range {low} to {high}")
                activations[name] = ActivationPlan(_width(site["bits"], name, origin, 2), (low, high))
            if body["ranges"] not in get_args(RangeMethod):
                raise UsageError(f"'{origin}' asks for unknown ranges '{body['ranges']}'")
            expected = arrays_by_name(body.get("expected_inputs", {}))
            left_float = dict(body.get("left_float", {}))
            scales = read_scales(body.get("scales", {}))
            flags = {name: body.get(name, False) for name in ("equalized", "quantized_outputs")}
            for name, flag in flags.items():
                if not isinstance(flag, bool):
                    raise UsageError(f"'{origin}' has '{name}' neither true nor false")
            ranges = body["ranges"]
            return cls(str(body["model"]), ranges, weights, activations, left_float, expected, scales, **flags)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"'{origin}' is not a complete plan: {error}") from error

    def encodings(self, prepared: Prepared) -> dict[str, Encoding]:
        """The encoding of every site, in the graph's order.

        Raises UsageError for a site that the model doesn't have, or a width that its target can't write.
        """
        sites, target = prepared.sites, prepared.target
        widths: dict[str, Widths] = {name: site.bits for name, site in self.activations.items()}
        for entries, written in ((self.weights, target.weight_widths), (widths, target.activation_widths)):
            for name, asked in entries.items():
                for bits in distinct(asked):
                    if bits not in written:
                        raise UsageError(
                            f"the plan gives site '{name}' {bits} bits, which the target '{target.name}' can't write"
                        )
                if len(distinct(asked)) > 1 and not target.mixes:
                    raise UsageError(
                        f"the plan gives the channels of '{name}' widths of their own, which the target "
                        f"'{target.name}' can't write: use one width, or another --target"
                    )
        for kind, named, known in (
            ("weight", self.weights, {site.name for site in sites.weights}),
            ("activation", self.activations, {site.name for site in sites.activations}),
        ):
            for name in named:
                if name not in known:
                    raise UsageError(f"the plan names {kind} '{name}', which the model doesn't have as one")
        found = {name: activation_encoding(*site.range, site.bits) for name, site in self.activations.items()}
        biases = prepared.biases
        for site in prepared.sites.weights:
            if site.name not in self.weights:
                continue
            chosen = self.weights[site.name]
            if not isinstance(chosen, int) and (site.axis is None or len(chosen) != site.channels):
                channels = "no channels" if site.axis is None else f"{site.channels} channels"
                raise UsageError(f"the plan gives weight '{site.name}' {len(chosen)} widths, but it has {channels}")
            alike = distinct(chosen)
            widths_of_site = chosen if len(alike) > 1 else alike[0]
            scales = self.scales.get(site.name)
            try:
                encoding = encoding_at(prepared.weight(site.name), site.axis, widths_of_site, self.ranges, scales)
            except ValueError as error:
                raise UsageError(f"the plan's scales of weight '{site.name}' don't fit it: {error}") from error
            for data, bias in biases.get(site.name, []):
                if data in found:
                    encoding = _with_room_for(bias, encoding, found[data])
            found[site.name] = encoding
        return found


def rounded_to_nearest(
    prepared: Prepared, encodings: Mapping[str, Encoding], names: Iterable[str]
) -> dict[str, NDArray[np.float32]]:
    """Those weights of `names` that have an encoding, as they are after quantization."""
    return {name: round_trip(prepared.weight(name), encodings[name]) for name in names if name in encodings}


def corrections(
    prepared: Prepared, rounded: Mapping[str, NDArray[np.float32]], expected: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """By layer, what its rounded weights add to the mean of its output.

    rounded: weights by name, as they are after quantization. Raises UsageError where `expected` doesn't fit a layer.
    """
    shifts = {}
    for layer in prepared.layers:
        if layer.weight not in rounded or layer.output not in expected:
            continue
        values, after = prepared.weight(layer.weight), rounded[layer.weight]
        groups = layer.groups if layer.operator == "ConvTranspose" else 1
        try:
            shifts[layer.output] = bias_shift(values, after, layer.axis, expected[layer.output], groups)
        except ValueError as error:
            raise UsageError(f"the expected inputs of layer '{layer.output}' don't fit its weight: {error}") from error
    return shifts


def _with_room_for(bias: NDArray[np.float32], encoding: Encoding, data: Encoding) -> Encoding:
    if bias.shape != encoding.scale.shape:
        return encoding
    return replace(encoding, scale=bias_safe_scale(encoding, bias, float(data.scale)))


def _widths(bits: object, name: str, origin: str) -> Widths:
    """One width, or those of the channels."""
    if not isinstance(bits, list):
        return _width(bits, name, origin, 1)
    if not bits:
        raise UsageError(f"'{origin}' gives site '{name}' an empty list of widths")
    return tuple(_width(entry, name, origin, 1) for entry in bits)


def _width(bits: object, name: str, origin: str, least: int) -> int:
    if not isinstance(bits, int) or isinstance(bits, bool) or not least <= bits <= MAX_BITS:
        raise UsageError(
            f"'{origin}' gives site '{name}' {bits!r} bits: a whole number {least} to {MAX_BITS} is needed"
        )
    return bits
