"""The whole way from a float model to a verified quantized one: the one place that knows it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from amq_onnx.calibration import Progress
from amq_onnx.compiler import Candidate, Compiler
from amq_onnx.errors import GateError, UsageError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import CalibrationDataReader, Dataset, open_data, reader_data
from amq_onnx.model.file import file_bytes, mean_weight_bits, read_model, require_folder, write_model
from amq_onnx.model.inputs import input_specs
from amq_onnx.pins import Pin, pinned_widths, widths_to_measure
from amq_onnx.plan_losses import measure_plan
from amq_onnx.result import Result
from amq_onnx.rewriting import oldest_runtime, prepare
from amq_onnx.runtime.verification import Comparison, Evaluator, Verification, check_gate, fall, require_gate
from amq_onnx.sensitivity import Sensitivity
from amq_onnx.size_search import Trial, smallest_within
from amq_onnx.sizes import parse_size
from amq_onnx.targets import TARGETS
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.rounding import Tuned
from amq_onnx.tuning.tuner import TuneMethod, Tuner, TuningOptions

Granularity = Literal["layer", "channel"]
"""What has a width of its own."""

# Sizes at which the frontier of a result is looked for: more than a screen can tell apart.
_FRONTIER_POINTS = 300

Data = str | Path | list[dict[str, Any]] | tuple[dict[str, Any], ...] | Dataset | CalibrationDataReader
"""Inputs of a model: what `open_data` opens, dicts of arrays by input, or a reader as onnxruntime's tools take it."""


def quantize(
    model: str | Path,
    data: Data | None = None,
    *,
    size: str | float | None = None,
    max_drop: float | None = None,
    output: str | Path | None = None,
    bits: Sequence[int] = tuple(range(2, 9)),
    activation_bits: Sequence[int] | None = (8,),
    activation_average: float | None = None,
    granularity: Granularity = "layer",
    exclude: Sequence[str] = (),
    pins: Sequence[Pin] = (),
    equalize: bool = False,
    quantize_outputs: bool = False,
    target: str = "onnxruntime",
    opset: int | None = None,
    keep_metadata: bool = False,
    sensitivity: Sensitivity | None = None,
    options: SensitivityOptions | None = None,
    tune: TuneMethod | TuningOptions | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    evaluation: Data | None = None,
    metric: str | None = None,
    provider: str = "cpu",
    details: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize the model in the file `model` to at most `size`, or as far as `max_drop` allows, and verify it.

    data: calibration inputs: what `amq_onnx.model.data.open_data` opens, a list of dicts of arrays by input, a Dataset,
        or an onnxruntime CalibrationDataReader. Not needed with `sensitivity`.
    size: "0.2" or "20%" of the input file, "4MB", "300KB"; a float is a fraction.
    max_drop: how far the metric may fall. Without `size` the smallest file within it is searched for, by evaluating
        files of several sizes; with it, a file that falls further is an error once it is written.
    output: where to write the file; without it nothing is written.
    bits, activation_bits: widths to choose from; activation_bits None leaves activations float.
    granularity: "layer" for one width a weight, "channel" for one of each output channel where that pays.
    exclude: regular expressions of sites that stay float. pins: the same with widths, which those sites get.
    equalize: even out channels between layers first. quantize_outputs: let Convs that make outputs round them,
        which takes less time. With `sensitivity`, both are as they were for that.
    target: what the file is for, "onnxruntime" or "standard".
    activation_average: bound on the element-weighted mean width of activations; needed with several widths.
    sensitivity: a table computed before. options: how to measure it otherwise.
    tune: what is learned once the widths are chosen; by default rounding, where there are calibration data.
    checkpoint: a folder that keeps what tuning has reached; resume: take it up from there.
    evaluation: data to verify on, by default the calibration data.
    details: find the frontier and measure the loss of each site as well, which a report shows.

    Raises the errors of amq_onnx.errors: BudgetError (no plan fits), GateError (no file within `max_drop`), ModelError,
    DataError, UsageError, ProviderError.
    """
    if size is None and max_drop is None:
        raise UsageError("give --size (4MB, 0.2), or --max-drop for the smallest file that falls no further")
    check_gate(metric, max_drop)
    path = Path(model)
    written = Path(output) if output is not None else None
    if written is not None:
        require_folder(written, "-o")
        if written.resolve() == path.resolve():
            raise UsageError(f"-o '{written}' is the float model itself: name another file")
    check_widths(bits, activation_bits, activation_average, target, granularity)
    proto = read_model(path)
    original = file_bytes(path)
    budget = None if size is None else parse_size(size).bytes(original)
    judged: dict[str, Any] = {"metric": metric, "provider": provider, "progress": progress}
    prepared = prepare(
        proto,
        opset=opset,
        exclude=tuple(exclude),
        target=target,
        equalize=equalize if sensitivity is None else sensitivity.equalized,
        quantize_outputs=quantize_outputs if sensitivity is None else sensitivity.quantized_outputs,
    )
    calibration = dataset(data, proto)
    against = dataset(evaluation, proto) if evaluation is not None else calibration
    float_bits = mean_weight_bits(proto)
    del proto  # of a large model, much of the memory
    pinned = pinned_widths(prepared, pins, activation_bits)
    tuner = tuner_for(tune, calibration, Checkpoint(checkpoint, resume), progress)
    if sensitivity is None:
        if calibration is None:
            raise UsageError("sensitivity needs calibration data: give --data (or --random)")
        channels = granularity == "channel"
        if options is None:
            options = SensitivityOptions(method="gauss-newton") if channels else SensitivityOptions()
        options = replace(options, channels=channels).before(learning=tuner is not None)
        asked = widths_to_measure(prepared.sites, pinned, bits, activation_bits)
        sensitivity = measure_sensitivity(prepared, calibration, *asked, options, progress)
    compiler = Compiler(
        prepared,
        sensitivity,
        bits,
        activation_bits,
        activation_average=activation_average,
        pinned=pinned,
        keep_metadata=keep_metadata,
        channels=granularity == "channel",
    )
    build = _Builder(compiler, tuner)
    if max_drop is not None and against is None:
        raise UsageError("--max-drop needs --data or --eval to verify on")
    trials: tuple[Trial, ...] = ()
    verification: Verification | None = None
    if budget is not None:
        best = build(budget)
        if against is not None:
            verification = _verified(Evaluator(path, against, **judged), best.model)
    else:
        assert against is not None and max_drop is not None
        evaluator = Evaluator(path, against, **judged)
        best, verification, trials = _smallest(build, compiler.least_bytes, original, evaluator, max_drop)
    options = options or SensitivityOptions()
    measured = None
    learned = build.tuned.get(best.bytes)
    if details and calibration is not None:
        measured = measure_plan(
            prepared,
            best.plan,
            calibration,
            sensitivity.loss,
            learned=learned.weights if learned is not None and sensitivity.rounding == "learned" else None,
            seed=options.seed,
            device=options.device,
            progress=progress,
        )
    result = Result(
        model=best.model,
        plan=best.plan,
        sensitivity=sensitivity,
        bytes=best.bytes,
        float_bytes=original,
        float_bits=float_bits,
        budget=budget,
        predicted_bytes=best.predicted_bytes,
        perturbation=best.allocation.loss,
        shares=compiler.shares(best.allocation),
        oldest_runtime=oldest_runtime(best.model),
        verification=verification,
        trials=trials,
        tuned=learned,
        frontier=tuple(compiler.frontier(_FRONTIER_POINTS)) if details else (),
        measured=measured,
    )
    if written is not None:
        write_model(best.model, written)
    if verification is not None:
        require_gate(verification, max_drop)
    return result


class _Builder:
    """Builds the best file of a budget, tuned where there is a tuner. tuned: by bytes, what was learned for a file."""

    def __init__(self, compiler: Compiler, tuner: Tuner | None) -> None:
        self.compiler = compiler
        self.tuner = tuner
        self.tuned: dict[int, Tuned] = {}

    def __call__(self, budget: int) -> Candidate:
        candidate = self.compiler.best(budget)
        if self.tuner is None:
            return candidate
        candidate, learned = tuned(self.compiler, candidate, self.tuner, str(candidate.bytes))
        self.tuned[candidate.bytes] = learned
        return candidate


def tuned(compiler: Compiler, candidate: Candidate, tuner: Tuner, name: str) -> tuple[Candidate, Tuned]:
    """`candidate` with what `tuner` has learned for it. name: tells its checkpoint from others'."""
    found: list[Tuned] = []

    def tune(model: onnx.ModelProto, quantized: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
        found.append(tuner(model, quantized, name, compiler.space.sensitivity.loss))
        return found[0].values

    return compiler.tuned(candidate, tune), found[0]


def tuner_for(
    tune: TuneMethod | TuningOptions | None,
    calibration: Dataset | None,
    checkpoint: Checkpoint,
    progress: Progress | None,
) -> Tuner | None:
    """What tunes, as `quantize` was asked to; None for nothing."""
    options = tune if isinstance(tune, TuningOptions) else TuningOptions(tune)
    method = options.method or ("none" if calibration is None else "rounding")
    if method == "none":
        return None
    if calibration is None:
        raise UsageError(f"--tune {method} needs calibration data: give --data")
    return Tuner(calibration, replace(options, method=method), checkpoint, progress)


def _smallest(
    build: Callable[[int], Candidate], least: int, most: int, evaluator: Evaluator, max_drop: float
) -> tuple[Candidate, Verification, tuple[Trial, ...]]:
    """The smallest file, of `least` to `most` bytes, whose drop is within `max_drop`, and all that were evaluated.

    Raises GateError, with the figures of the best one, where there is none.
    """
    comparisons: dict[int, Comparison] = {}

    def drop_of(candidate: Candidate) -> float:
        with file_of(candidate.model) as path:
            comparisons[candidate.bytes] = evaluator.compare(path)
        return comparisons[candidate.bytes].drop

    found = smallest_within(build, drop_of, max_drop, least, most)
    if found.smallest is None:
        raise GateError(
            f"no file is within --max-drop {max_drop:g}: with the best of {len(found.trials)} that were evaluated, of "
            f"{found.best.bytes:,} bytes, {fall(comparisons[found.best.bytes])}; nothing was written"
        )
    best = found.smallest
    return best, _verified(evaluator, best.model, comparisons[best.bytes]), found.trials


def _verified(evaluator: Evaluator, model: onnx.ModelProto, comparison: Comparison | None = None) -> Verification:
    with file_of(model) as path:
        return evaluator.timed(comparison or evaluator.compare(path), path)


@contextmanager
def file_of(model: onnx.ModelProto) -> Iterator[Path]:
    """`model` written as it will be, for as long as it's looked at."""
    with tempfile.TemporaryDirectory(prefix="amq-") as folder:
        path = Path(folder) / "quantized.onnx"
        write_model(model, path)
        yield path


def check_widths(
    bits: Sequence[int],
    activation_bits: Sequence[int] | None,
    activation_average: float | None,
    target: str,
    granularity: Granularity = "layer",
) -> None:
    """Raise UsageError for widths that the target can't write, or activation widths that no budget decides between."""
    if target not in TARGETS:
        raise UsageError(f"target '{target}' is unknown: use {' or '.join(TARGETS)}")
    kind = TARGETS[target]
    for option, asked, written in (
        ("--bits", bits, kind.weight_widths),
        ("--activation-bits", activation_bits or (), kind.activation_widths),
    ):
        if missing := sorted(set(asked) - set(written)):
            raise UsageError(f"{option}: the target '{target}' can't write {missing[0]} bits, only {_listed(written)}")
    if granularity not in get_args(Granularity):
        raise UsageError(f"--granularity '{granularity}' is unknown: use {' or '.join(get_args(Granularity))}")
    if granularity == "channel" and not kind.mixes:
        raise UsageError(
            f"--granularity channel: the target '{target}' gives all channels of a weight one width; use --granularity "
            "layer, or another --target"
        )
    if activation_bits is not None and len(set(activation_bits)) > 1 and activation_average is None:
        raise UsageError(
            "several --activation-bits need --activation-average: narrow activations save no bytes, so nothing "
            "else decides between them"
        )
    if activation_average is not None and activation_bits is None:
        raise UsageError("--activation-average has no meaning with --activation-bits float")
    if activation_average is not None and not math.isfinite(activation_average):
        raise UsageError(f"--activation-average {activation_average} is not a number of bits")


def _listed(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths))


def dataset(data: Data | None, model: onnx.ModelProto) -> Dataset | None:
    """`data` in any of its forms, as a Dataset for `model`. Raises UsageError for anything else."""
    if data is None or isinstance(data, Dataset):
        return data
    if isinstance(data, (str, Path)):
        return open_data(str(data), model)
    if isinstance(data, list | tuple):
        return Dataset(lambda: data, input_specs(model), "the given batches")
    if hasattr(data, "get_next"):
        return reader_data(data, model)
    raise UsageError(
        f"data can't be a {type(data).__name__}: give a path, script.py:function, a list of dicts of arrays by input, "
        "a Dataset or a CalibrationDataReader"
    )
