"""Two models on the same data in onnxruntime: score, error of each output, bytes and latency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from amq_onnx.calibration import Progress
from amq_onnx.errors import DataError, GateError, ModelError, UsageError
from amq_onnx.model.data import LABELS, Batch, Dataset
from amq_onnx.model.file import file_bytes
from amq_onnx.runtime.latency import Latency, alternate
from amq_onnx.runtime.metrics import Metric, UserMetric, metric_named
from amq_onnx.runtime.session import exact_options, open_session

_BATCH = 32
_RELATIVE_METRICS = ("agreement", "cosine")


@dataclass(frozen=True)
class OutputError:
    """Difference of one output from the full-precision model's: the largest and the mean absolute, and SQNR in dB."""

    largest: float
    mean: float
    sqnr: float


@dataclass(frozen=True)
class Verification:
    """What two models did on the same data.

    scores are of `metric`; drop is how much the second is below the first (agreement and cosine: below 1).
    latency: median seconds a run of one sample, in turns. options: session options of the second model.
    """

    provider: str
    runtime: str
    samples: int
    metric: str
    float_score: float
    quantized_score: float
    drop: float
    outputs: dict[str, OutputError]
    float_bytes: int
    quantized_bytes: int
    latency: Latency
    options: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"latency_ratio": self.latency.ratio}


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
    """Run both files on `data` and compare.

    metric: one of METRICS or script.py:function; by default top1 where there are labels and scores [N, C],
    agreement for scores without labels, else cosine.

    Raises ProviderError if the provider isn't there, DataError for data that don't fit, ModelError for files that
    the runtime refuses or whose outputs differ in name.
    """
    import onnxruntime

    second_model = onnx.load_model(quantized, load_external_data=False)
    needed = {**exact_options(second_model, provider), **(options or {})}
    first = open_session(reference, provider, threads=threads)
    second = open_session(quantized, provider, threads=threads, options=needed)
    inputs = {value.name for value in first.get_inputs()}
    names = [output.name for output in first.get_outputs()]
    if names != [output.name for output in second.get_outputs()]:
        raise ModelError(f"'{quantized}' has other outputs than '{reference}': they aren't the same model")
    batches = data.batches(_BATCH)
    head = next(batches)
    labelled = LABELS in head and LABELS not in inputs
    chosen = metric or _default_metric(_run(first, names, head), labelled)
    makers = metric_named(chosen)
    float_metric, quantized_metric = makers(), makers()
    errors = {name: _RunningError() for name in names}
    samples = 0
    unequal: dict[str, str] = {}
    for batch in chain([head], batches):
        outputs = _run(first, names, batch)
        found = _run(second, names, batch)
        labels = None if LABELS in inputs else batch.get(LABELS)
        for name in names:
            if outputs[name].shape != found[name].shape:
                shapes = f"shape {found[name].shape} where the full-precision model's has {outputs[name].shape}"
                unequal.setdefault(name, f"output '{name}' has {shapes}")
        if unequal and not isinstance(quantized_metric, UserMetric):
            reason = next(iter(unequal.values()))
            raise ModelError(f"{reason}, so they can't be compared: use --metric script.py:function")
        _add(float_metric, outputs, outputs, labels)
        _add(quantized_metric, outputs, found, labels)
        for name in names:
            if name not in unequal:
                errors[name].add(outputs[name], found[name])
        samples += data.count(batch)
        if progress is not None:
            progress("verification", samples, None)
    float_score, quantized_score = float_metric.score(), quantized_metric.score()
    one = next(data.batches(1))
    latency = alternate(lambda: _run(first, names, one), lambda: _run(second, names, one))
    return Verification(
        provider=provider,
        runtime=onnxruntime.__version__,
        samples=samples,
        metric=chosen,
        float_score=float_score,
        quantized_score=quantized_score,
        drop=float_score - quantized_score,
        outputs={name: error.result() for name, error in errors.items() if error.count and name not in unequal},
        float_bytes=file_bytes(reference),
        quantized_bytes=file_bytes(quantized),
        latency=latency,
        options=needed,
        notes=[*_notes(needed), *unequal.values()],
    )


def require_gate(verification: Verification, max_drop: float | None) -> None:
    """Raise GateError if the drop is above `max_drop`; UsageError for what `check_gate` refuses."""
    if max_drop is None:
        return
    check_gate(verification.metric, max_drop)
    if not verification.drop <= max_drop:
        raise GateError(
            f"{verification.metric} fell by {verification.drop:.4f} to {verification.quantized_score:.4f}, more than "
            f"--max-drop {max_drop:g} allows: give a larger --size"
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
        return dict(zip(names, session.run(names, feeds), strict=True))
    except Exception as error:  # onnxruntime's errors share no base class
        line = (str(error).strip().splitlines() or ["unknown reason"])[0]
        raise ModelError(f"onnxruntime failed to run the model: {line}") from error


def _default_metric(outputs: Mapping[str, np.ndarray], labelled: bool) -> str:
    scores = next(iter(outputs.values()))
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
        self.count = 0

    def add(self, reference: np.ndarray, found: np.ndarray) -> None:
        if reference.dtype.kind != "f" or not reference.size:
            return
        difference = found.astype(np.float64) - reference
        self.largest = max(self.largest, float(np.abs(difference).max()))
        self.total += float(np.abs(difference).sum())
        self.signal += float(np.square(reference, dtype=np.float64).sum())
        self.noise += float(np.square(difference).sum())
        self.count += reference.size

    def result(self) -> OutputError:
        noiseless = self.noise == 0
        sqnr = float("inf") if noiseless else 10 * float(np.log10(max(self.signal, 1e-300) / self.noise))
        return OutputError(self.largest, self.total / max(1, self.count), sqnr)
