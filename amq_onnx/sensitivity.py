"""The sensitivity table: what each site is expected to add to the loss at each width.

sensitivity.json holds it, with everything that a search for widths needs: it is computed once and searched for
many budgets, without the data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from amq_onnx.errors import ModelError, UsageError
from amq_onnx.quantizer.encoding import RangeMethod, Widths, distinct, mean_width

FORMAT = "amq-sensitivity"
VERSION = 3

Rounding = Literal["nearest", "learned"]
"""Of which rounding of weights losses are: to nearest, or what learned rounding is expected to leave."""

Scales = dict[str, dict[int, NDArray[np.float32]]]
"""By weight and bits, the scales of its channels, float32 [channels]."""


@dataclass(frozen=True)
class WeightRow:
    """A weight: its mean-loss Hessian trace and, by bits, ||Q(W) - W||^2, and the loss where that was estimated.

    trace and trace_error (its standard error) are of the whole block, not per element; None where no trace was taken.
    loss: by bits, what quantizing this weight alone adds to the loss, and its standard error; empty where a trace
    stands for it. channel_trace, channel_error: trace and squared error of each output channel, where they were
    measured; they sum to the weight's.
    """

    shape: tuple[int, ...]
    trace: float | None
    trace_error: float | None
    squared_error: dict[int, float]
    loss: dict[int, tuple[float, float]] = field(default_factory=dict)
    channel_trace: tuple[float, ...] | None = None
    channel_error: dict[int, tuple[float, ...]] | None = None

    @property
    def elements(self) -> int:
        """How many weights."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def omega(self, widths: Widths) -> float:
        """The loss, or mean-trace(H) * ||Q_b(W) - W||^2 (HAWQ-V2's Omega); with |trace|, see `negative_traces`.

        Where channels were measured it is the sum of theirs, each with its own mean trace, at one width or at each
        channel's own; ValueError for widths of channels where they were not.
        """
        if isinstance(widths, int):
            if self.trace is None:
                return max(0.0, self.loss[widths][0])
            if self.channel_trace is None:
                return abs(self.trace) / self.elements * self.squared_error[widths]
            return float(self.channel_omega(widths).sum())
        chosen = np.array(widths)
        return float(sum(self.channel_omega(bits)[chosen == bits].sum() for bits in distinct(widths)))

    def channel_omega(self, bits: int) -> NDArray[np.float64]:
        """Omega of each channel, [channels]. Raises ValueError where channels were not measured."""
        if self.channel_trace is None or self.channel_error is None:
            raise ValueError("the channels were not measured")
        elements = self.elements // len(self.channel_trace)
        return np.asarray(np.abs(self.channel_trace) / elements * np.array(self.channel_error[bits]), np.float64)

    def widths(self) -> list[int]:
        """Widths that the table knows."""
        return sorted(self.squared_error)


@dataclass(frozen=True)
class ActivationRow:
    """An activation: the mean over samples of its trace and, by bits, its range and its perturbation or loss.

    elements: of one sample. trace, trace_error, loss: as of a WeightRow. ranges: [low, high] that the codes
    cover. perturbation: E_n[ mean-trace(H_n) * ||Q_b(a_n) - a_n||^2 ], empty where there is a loss.
    """

    elements: int
    trace: float | None
    trace_error: float | None
    ranges: dict[int, tuple[float, float]]
    perturbation: dict[int, float]
    loss: dict[int, tuple[float, float]] = field(default_factory=dict)

    def omega(self, bits: int) -> float:
        """The loss, or see `perturbation`; its absolute value, see `negative_traces`."""
        if self.trace is None:
            return max(0.0, self.loss[bits][0])
        return abs(self.perturbation[bits])

    def widths(self) -> list[int]:
        """Widths that the table knows."""
        return sorted(self.ranges)


@dataclass(frozen=True)
class Sensitivity:
    """The table of all sites and how it came about.

    model: fingerprint of the float model. method: how it was measured. loss: by head tensor, the loss and
    why it was chosen. samples, probes: on how many samples, with how many probes each. converged: whether every
    standard error is as small as was asked. left_float: by tensor, why it has no row. expected_inputs: by layer, what
    its weights are multiplied with on average (see ExpectedInputs). scales: by weight and bits, those of its channels
    that were chosen by the error of the layer's outputs; others follow from the weight and `ranges`. equalized: whether
    the model's channels were evened out before (EqualizeChannels). quantized_outputs: whether outputs that Convs make
    are among the activations. rounding: of which losses are.
    """

    model: str
    method: str
    loss: dict[str, str]
    samples: int
    probes: int
    converged: bool
    seed: int
    ranges: str
    weights: dict[str, WeightRow]
    activations: dict[str, ActivationRow]
    left_float: dict[str, str] = field(default_factory=dict)
    expected_inputs: dict[str, NDArray[np.float32]] = field(default_factory=dict, compare=False)
    scales: Scales = field(default_factory=dict, compare=False)
    equalized: bool = False
    rounding: Rounding = "nearest"
    quantized_outputs: bool = False

    def negative_traces(self) -> list[str]:
        """Sites whose trace is negative: only a Hessian's can be, where the model isn't at a minimum.

        The second-order model then has no minimum at the full-precision value. Its size still measures the
        curvature, so the search takes the absolute value rather than calling the site free.
        """
        rows: Mapping[str, WeightRow | ActivationRow] = {**self.weights, **self.activations}
        return [name for name, row in rows.items() if row.trace is not None and row.trace < 0]

    def mean_bits(self, weights: Mapping[str, Widths]) -> float:
        """Mean width of an element of `weights`, whose widths are given by name."""
        elements = {name: self.weights[name].elements for name in weights}
        return sum(mean_width(weights[name]) * count for name, count in elements.items()) / sum(elements.values())

    def to_json(self) -> str:
        """The text of sensitivity.json."""
        named = asdict(replace(self, expected_inputs={}, scales={}))
        for row in named["weights"].values():
            if row["channel_trace"] is None:
                del row["channel_trace"], row["channel_error"]
        body = {"format": FORMAT, "version": VERSION, **named}
        body["expected_inputs"] = numbers_by_name(self.expected_inputs)
        body["scales"] = scale_numbers(self.scales)
        return json_lines(body)

    @classmethod
    def from_json(cls, text: str, origin: str) -> Sensitivity:
        """Read what `to_json` wrote. Raises UsageError, naming `origin`, for anything else."""
        body = parse_versioned(text, origin, FORMAT, VERSION)
        try:
            weights = {
                name: WeightRow(
                    tuple(int(size) for size in row["shape"]),
                    _number(row["trace"]),
                    _number(row["trace_error"]),
                    {int(bits): float(error) for bits, error in row["squared_error"].items()},
                    _losses(row),
                    *_channels(row),
                )
                for name, row in body.pop("weights").items()
            }
            activations = {
                name: ActivationRow(
                    int(row["elements"]),
                    _number(row["trace"]),
                    _number(row["trace_error"]),
                    {int(bits): (float(low), float(high)) for bits, (low, high) in row["ranges"].items()},
                    {int(bits): float(value) for bits, value in row["perturbation"].items()},
                    _losses(row),
                )
                for name, row in body.pop("activations").items()
            }
            expected = arrays_by_name(body.pop("expected_inputs", {}))
            scales = read_scales(body.pop("scales", {}))
            table = cls(weights=weights, activations=activations, expected_inputs=expected, scales=scales, **body)
            table._check()
            return table
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"'{origin}' is not a complete sensitivity table: {error}") from error

    def _check(self) -> None:
        """Raise ValueError for entries that can't be searched."""
        if self.ranges not in get_args(RangeMethod):
            raise ValueError(f"unknown ranges '{self.ranges}'")
        for name in ("equalized", "quantized_outputs"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"'{name}' is not true or false")
        if self.rounding not in get_args(Rounding):
            raise ValueError(f"unknown rounding '{self.rounding}'")
        if not isinstance(self.loss, dict) or not isinstance(self.left_float, dict):
            raise ValueError("'loss' and 'left_float' are not objects")
        for name, row in self.weights.items():
            _require_numbers(name, row, row.squared_error.values())
            if row.trace is None and set(row.loss) != set(row.squared_error):
                raise ValueError(f"'{name}' has squared errors and losses of different widths")
            if min(row.squared_error.values(), default=0) < 0:
                raise ValueError(f"'{name}' has a squared error below 0")
            if row.channel_trace is not None and row.channel_error is not None:
                parts = [row.channel_trace, *row.channel_error.values()]
                _require_numbers(name, row, chain.from_iterable(parts))
                if len({len(part) for part in parts}) > 1 or row.elements % max(1, len(row.channel_trace)):
                    raise ValueError(f"'{name}' has entries for different numbers of channels")
                if set(row.channel_error) != set(row.squared_error):
                    raise ValueError(f"'{name}' has channels of other widths than the weight")
                if min(chain.from_iterable(row.channel_error.values()), default=0) < 0:
                    raise ValueError(f"'{name}' has a squared error below 0")
        for name, active in self.activations.items():
            ends = [end for pair in active.ranges.values() for end in pair]
            _require_numbers(name, active, [*active.perturbation.values(), *ends])
            if set(active.ranges) != set(active.loss if active.trace is None else active.perturbation):
                raise ValueError(f"'{name}' has ranges and perturbations of different widths")
            if any(low > high for low, high in active.ranges.values()):
                raise ValueError(f"'{name}' has a range whose ends are the wrong way round")


def _channels(row: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, dict[int, tuple[float, ...]] | None]:
    if row.get("channel_trace") is None:
        return None, None
    errors = {int(bits): tuple(map(float, part)) for bits, part in row["channel_error"].items()}
    return tuple(map(float, row["channel_trace"])), errors


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _losses(row: Mapping[str, Any]) -> dict[int, tuple[float, float]]:
    return {int(bits): (float(value), float(error)) for bits, (value, error) in row["loss"].items()}


def _require_numbers(name: str, row: WeightRow | ActivationRow, others: Iterable[float]) -> None:
    if row.elements < 1:
        raise ValueError(f"'{name}' has no elements")
    losses = [value for value, _ in row.loss.values()]
    if not all(math.isfinite(value) for value in (row.trace or 0.0, *losses, *others)):
        raise ValueError(f"'{name}' has an entry that is not a finite number")


def parse_versioned(text: str, origin: str, format_name: str, version: int) -> dict[str, Any]:
    """The fields of a JSON object that carries `format` and `version`, without those two.

    Raises UsageError, naming `origin`, for anything else.
    """
    try:
        body = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"'{origin}' is not JSON: {error}") from error
    if not isinstance(body, dict) or body.pop("format", None) != format_name:
        raise UsageError(f"'{origin}' is not an {format_name} file")
    found = body.pop("version", None)
    if found != version:
        raise UsageError(f"'{origin}' has version {found} of {format_name}; this amq reads version {version}")
    return body


def json_lines(body: Mapping[str, Any]) -> str:
    """A JSON object as text, with a line for each entry of the objects in it: a diff shows the sites that changed."""
    lines = []
    for key, value in body.items():
        if isinstance(value, dict):
            rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{rows}\n }}" if rows else f" {json.dumps(key)}: {{}}")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def six_digits(values: Iterable[float]) -> tuple[float, ...]:
    """Numbers as the file holds them."""
    return tuple(float(f"{value:.6g}") for value in values)


def numbers_by_name(arrays: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Arrays as nested lists for JSON, of six digits, which is nearly all that a float32 has."""
    return {
        name: np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(array).tolist()
        for name, array in arrays.items()
    }


def arrays_by_name(numbers: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
    """What `numbers_by_name` wrote. Raises ValueError for lists of unequal lengths or numbers that aren't finite."""
    arrays = {name: np.asarray(values, np.float32) for name, values in numbers.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise ValueError(f"'{name}' has an entry that is not a finite number")
    return arrays


def scale_numbers(scales: Scales) -> dict[str, dict[int, list[float]]]:
    """Scales as lists for JSON."""
    return {
        name: {bits: numbers_by_name({"": array})[""] for bits, array in by_bits.items()}
        for name, by_bits in scales.items()
    }


def read_scales(numbers: Mapping[str, Any]) -> Scales:
    """What `scale_numbers` wrote. Raises ValueError for scales that aren't positive and finite."""
    scales: Scales = {}
    for name, by_bits in numbers.items():
        scales[name] = {int(bits): np.asarray(row, np.float32) for bits, row in by_bits.items()}
        for row in scales[name].values():
            if row.ndim != 1 or not (np.isfinite(row).all() and (row > 0).all()):
                raise ValueError(f"'{name}' has scales that are not a list of positive numbers")
    return scales


def read_json_file(path: Path) -> str:
    """The text of `path`. Raises UsageError if there is no such file or it isn't text."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"'{path}' can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"'{path}' is not a text file") from error


def require_same_model(found: str, expected: str, origin: str) -> None:
    """Raise ModelError if a file was made for another model."""
    if found != expected:
        raise ModelError(f"'{origin}' was made for another model (or another --opset): make it again for this one")
