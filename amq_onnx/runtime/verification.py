"""Two models on the same data in onnxruntime: score, error of each output, bytes and latency."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from amq_onnx.calibration import Progress
from amq_onnx.errors import DataError, GateError, ModelError, UsageError, first_line
from amq_onnx.model.data import LABELS, Batch, Dataset
from amq_onnx.model.file import file_bytes
from amq_onnx.model.joined_outputs import apart, joined_outputs
from amq_onnx.runtime.confidence import DropEstimate, Interval
from amq_onnx.runtime.latency import Latency, alternate
from amq_onnx.runtime.metrics import Metric, UserMetric, first_float, metric_named
from amq_onnx.runtime.session import exact_options, open_session

_BATCH = 32
_KEPT_BYTES = 1_000_000_000


@dataclass(frozen=True)
class OutputError:
    """Difference of one output from the full-precision model's: the largest and the mean absolute, and SQNR in dB.

    divergence: of scores or probabilities [N, C], the mean over samples of KL(float || quantized); None for others.
    """

    largest: float
    mean: float
    sqnr: float
    divergence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two models answered on the same data.

    scores are of `metric`; drop is how much the second is below the first (agreement and cosine: below 1), estimate how
    sure that is, None where the metric isn't a mean over samples. options: session options of the second model.
    """

    provider: str
    runtime: str
    samples: int
    metric: str
    float_score: float
    quantized_score: float
    drop: float
    estimate: DropEstimate | None = None
    outputs: dict[str, OutputError]
    options: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def drop_interval(self) -> Interval | None:
        """The 95 % confidence interval of the drop."""
        return None if self.estimate is None else self.estimate.interval()


@dataclass(frozen=True, kw_only=True)
class Verification(Comparison):
    """A comparison with the bytes of both files and their latency: median seconds a run of one sample, in turns."""

    float_bytes: int
    quantized_bytes: int
    latency: Latency

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"drop_interval": self.drop_interval, "latency_ratio": self.latency.ratio}


class Evaluator:
    """Compares files with one float model on the same data. The float model runs once.

    metric: one of METRICS or script.py:function; by default top1 where there are labels and scores [N, C],
    agreement for scores without labels, else cosine. Outputs of the float model are kept, up to 1 GB of them; what is
    beyond is computed anew for each file.

    Raises ProviderError if the provider isn't there, ModelError for a file that the runtime refuses.
    """

    def __init__(
        self,
        reference: Path,
        data: Dataset,
        *,
        metric: str | None = None,
        provider: str = "cpu",
        threads: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self.reference = reference
        self.data = data
        self.provider = provider
        self.threads = threads
        self.progress = progress
        self.session = open_session(reference, provider, threads=threads)
        self.names = [output.name for output in self.session.get_outputs()]
        self.joints = joined_outputs(onnx.load_model(reference, load_external_data=False))
        self.labels_are_input = LABELS in {value.name for value in self.session.get_inputs()}
        self._kept: list[dict[str, np.ndarray]] = []
        self._kept_bytes = 0
        head = next(data.batches(_BATCH))
        labelled = LABELS in head and not self.labels_are_input
        self.metric = metric or _default_metric(self._reference(0, head), labelled)
        self._makers = metric_named(self.metric)
        self._float_metric: Metric | None = None

    def compare(self, quantized: Path, options: Mapping[str, str] | None = None) -> Comparison:
        """Run the file on all data; `options` are session configuration entries for it.

        Raises DataError for data that don't fit, ModelError for a file that the runtime refuses or whose outputs
        differ in name or shape.
        """
        second, needed = self._open(quantized, options)
        return self._compare(second, needed)

    def timed(self, comparison: Comparison, quantized: Path) -> Verification:
        """The comparison with that file, with the latency of both."""
        second, _ = self._open(quantized, comparison.options)
        one = next(self.data.batches(1))
        found = {entry.name: getattr(comparison, entry.name) for entry in fields(comparison)}
        return Verification(
            **found,
            float_bytes=file_bytes(self.reference),
            quantized_bytes=file_bytes(quantized),
            latency=alternate(lambda: _run(self.session, self.names, one), lambda: _run(second, self.names, one)),
        )

    def _open(self, quantized: Path, options: Mapping[str, str] | None) -> tuple[Any, dict[str, str]]:
        model = onnx.load_model(quantized, load_external_data=False)
        needed = {**exact_options(model, self.provider), **(options or {})}
        second = open_session(quantized, self.provider, threads=self.threads, options=needed)
        if self.names != [output.name for output in second.get_outputs()]:
            raise ModelError(f"'{quantized}' has other outputs than '{self.reference}': they aren't the same model")
        return second, needed

    def _compare(self, second: Any, needed: dict[str, str]) -> Comparison:
        import onnxruntime

        first_run = self._float_metric is None
        float_metric, quantized_metric = self._float_metric or self._makers(), self._makers()
        errors: dict[str, _RunningError] = defaultdict(_RunningError)
        samples = 0
        unequal: dict[str, str] = {}
        for number, batch in enumerate(self.data.batches(_BATCH)):
            outputs = self._reference(number, batch)
            found = _run(second, self.names, batch)
            labels = None if self.labels_are_input else batch.get(LABELS)
            for name, expected in outputs.items():
                if name not in found or found[name].shape != expected.shape:
                    shape = f"shape {found[name].shape}" if name in found else "nothing"
                    wanted = f"where the full-precision model's has {expected.shape}"
                    unequal.setdefault(name, f"output '{name}' has {shape} {wanted}")
            if unequal and not isinstance(quantized_metric, UserMetric):
                reason = next(iter(unequal.values()))
                raise ModelError(f"{reason}, so they can't be compared: use --metric script.py:function")
            equal = outputs.keys() - unequal.keys()
            expected_parts, found_parts = (
                apart({name: array for name, array in made.items() if name in equal}, self.joints)
                for made in (outputs, found)
            )
            if quantized_metric.by_parts:
                outputs, found = expected_parts, found_parts
            if first_run:
                _add(float_metric, outputs, outputs, labels)
            _add(quantized_metric, outputs, found, labels)
            for name, expected in expected_parts.items():
                errors[name].add(expected, found_parts[name])
            samples += self.data.count(batch)
            if self.progress is not None:
                self.progress("verification", samples, None)
        self._float_metric = float_metric
        float_score, quantized_score = float_metric.score(), quantized_metric.score()
        estimate = quantized_metric.drop_from(float_metric)
        return Comparison(
            provider=self.provider,
            runtime=onnxruntime.__version__,
            samples=samples,
            metric=self.metric,
            float_score=float_score,
            quantized_score=quantized_score,
            drop=float_score - quantized_score if estimate is None else estimate.drop,
            estimate=estimate,
            outputs={
                name: error.result()
                for name, error in errors.items()
                if error.count and unequal.keys().isdisjoint({name, name.rpartition("[")[0]})
            },
            options=needed,
            notes=[*_notes(needed), *unequal.values()],
        )

    def _reference(self, number: int, batch: Batch) -> dict[str, np.ndarray]:
        """The float model's outputs of a batch."""
        if number < len(self._kept):
            return self._kept[number]
        outputs = _run(self.session, self.names, batch)
        size = sum(array.nbytes for array in outputs.values())
        if number == len(self._kept) and self._kept_bytes + size <= _KEPT_BYTES:
            self._kept.append(outputs)
            self._kept_bytes += size
        return outputs


def verify(
    reference: Path,
    quantized: Path,
    data: Dataset,
    *,
    metric: str | None = None,
    provider: str = "cpu",
    options: Mapping[str, str] | None = None,
    threads: int = 0,
    progress: Progress | None = None,
) -> Verification:
    """Run both files on `data` and compare: see Evaluator, which also says what is raised."""
    evaluator = Evaluator(reference, data, metric=metric, provider=provider, threads=threads, progress=progress)
    return evaluator.timed(evaluator.compare(quantized, options), quantized)


def require_gate(comparison: Comparison, max_drop: float | None) -> None:
    """Raise GateError if the drop is above `max_drop`; UsageError for what `check_gate` refuses."""
    if max_drop is None:
        return
    check_gate(comparison.metric, max_drop)
    if not comparison.drop <= max_drop:
        raise GateError(f"{fall(comparison)}, more than --max-drop {max_drop:g} allows: give a larger --size")


def fall(comparison: Comparison) -> str:
    """How far the metric fell, and how sure that is, as the start of a sentence."""
    said = f"{comparison.metric} fell by {comparison.drop:.4f} to {comparison.quantized_score:.4f}"
    interval = comparison.drop_interval
    return said if interval is None else f"{said} (95 % interval of the fall {interval[0]:.4f} to {interval[1]:.4f})"


def doubt(comparison: Comparison, max_drop: float | None) -> str | None:
    """What to say where the drop is within `max_drop` but its interval reaches beyond; None where there is no doubt."""
    estimate = comparison.estimate
    if max_drop is None or estimate is None or not estimate.interval()[1] > max_drop:
        return None
    needed = estimate.samples_for(max_drop)
    more = "no number of samples would settle it" if needed is None else f"about {needed:,} would settle it"
    return (
        f"{fall(comparison)}: within --max-drop {max_drop:g}, but {comparison.samples:,} samples can't rule out more; "
        f"{more} if they do alike"
    )


def check_gate(metric: str | None, max_drop: float | None) -> None:
    """Raise UsageError for an unknown metric, or one whose drop means nothing, before anything is measured."""
    if metric is not None:
        metric_named(metric)
    if max_drop is None:
        return
    if math.isnan(max_drop):
        raise UsageError("--max-drop nan is not a number")
    if metric == "sqnr":
        raise UsageError("--max-drop has no meaning for --metric sqnr: use top1, agreement, cosine or a function")


def _notes(options: Mapping[str, str]) -> list[str]:
    if "session.x64quantprecision" not in options:
        return []
    return [
        "this CPU has no VNNI, so 8-bit weights overflow in onnxruntime's 16-bit sums: verified with "
        "session.x64quantprecision=1, which your sessions need on such CPUs too (or quantize with --bits 2-7)"
    ]


def _run(session: Any, names: list[str], batch: Batch) -> dict[str, np.ndarray]:
    feeds = {value.name: batch[value.name] for value in session.get_inputs() if value.name in batch}
    try:
        made = session.run(names, feeds)
    except Exception as error:  # onnxruntime's errors share no base class
        line = first_line(error)
        raise ModelError(f"onnxruntime failed to run the model: {line}") from error
    found: dict[str, np.ndarray] = {}
    for name, value in zip(names, made, strict=True):
        found |= _arrays(name, value)
    return found


def _arrays(name: str, value: Any) -> dict[str, np.ndarray]:
    """The arrays of one output: those of a sequence by number, of maps from classes to scores (ZipMap) one [samples,
    classes], of an empty optional none."""
    if isinstance(value, np.ndarray):
        return {name: value}
    found: dict[str, np.ndarray] = {}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        found[name] = np.array([[scores[key] for key in value[0]] for scores in value])
    elif isinstance(value, list):
        for number, each in enumerate(value):
            found |= _arrays(f"{name}[{number}]", each)
    return found


def _default_metric(outputs: Mapping[str, np.ndarray], labelled: bool) -> str:
    scores = first_float(outputs)
    if scores.ndim == 2 and scores.shape[1] > 1:
        return "top1" if labelled else "agreement"
    return "cosine"


def _add(metric: Metric, reference: Any, outputs: Any, labels: Any) -> None:
    if metric.needs_labels and labels is None:
        raise DataError(f"metric {metric.name} needs `labels` in the data: add them, or use --metric agreement")
    metric.add(reference, outputs, labels)


class _RunningError:
    def __init__(self) -> None:
        self.largest = 0.0
        self.total = self.signal = self.noise = 0.0
        self.count = self.samples = 0
        self.divergence = 0.0

    def add(self, reference: np.ndarray, found: np.ndarray) -> None:
        if reference.dtype.kind != "f" or not reference.size:
            return
        difference = found.astype(np.float64) - reference
        self.largest = max(self.largest, float(np.abs(difference).max()))
        self.total += float(np.abs(difference).sum())
        self.signal += float(np.square(reference, dtype=np.float64).sum())
        self.noise += float(np.square(difference).sum())
        self.count += reference.size
        if reference.ndim == 2 and reference.shape[1] > 1:
            first, second = _log_probabilities(reference), _log_probabilities(found)
            self.divergence += float((np.exp(first) * (first - second)).sum())
            self.samples += len(reference)

    def result(self) -> OutputError:
        noiseless = self.noise == 0
        sqnr = float("inf") if noiseless else 10 * float(np.log10(max(self.signal, 1e-300) / self.noise))
        divergence = self.divergence / self.samples if self.samples else None
        return OutputError(self.largest, self.total / max(1, self.count), sqnr, divergence)


def _log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Of softmax over the classes, [N, C]; of rows that are probabilities already, their own."""
    values = scores.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(1), 1, atol=1e-3):
        return np.asarray(np.log(np.maximum(values, 1e-12)))
    values = values - values.max(1, keepdims=True)
    return np.asarray(values - np.log(np.exp(values).sum(1, keepdims=True)))
