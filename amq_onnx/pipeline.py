"""The whole way from a float model to a verified quantized one: the one place that knows it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from amq_onnx.calibration import Progress
from amq_onnx.compiler import Compiler
from amq_onnx.errors import UsageError
from amq_onnx.measurement import SensitivityOptions, measure_sensitivity
from amq_onnx.model.data import CalibrationDataReader, Dataset, open_data, reader_data
from amq_onnx.model.file import file_bytes, read_model, require_folder, write_model
from amq_onnx.plan import Plan
from amq_onnx.rewriting import oldest_runtime, prepare
from amq_onnx.sensitivity import Sensitivity
from amq_onnx.sizes import parse_size
from amq_onnx.targets import TARGETS


@dataclass(frozen=True, eq=False)
class Result:
    """What `quantize` made. verification is None where no evaluation data were given or nothing was written."""

    model: onnx.ModelProto
    plan: Plan
    sensitivity: Sensitivity
    bytes: int
    float_bytes: int
    budget: int
    predicted_bytes: int
    perturbation: float
    shares: dict[str, float] = field(default_factory=dict)
    oldest_runtime: str = ""
    verification: Any = None


def quantize(
    model: str | Path,
    data: str | Dataset | CalibrationDataReader | None = None,
    *,
    size: str | float,
    output: str | Path | None = None,
    bits: Sequence[int] = tuple(range(2, 9)),
    activation_bits: Sequence[int] | None = (8,),
    activation_average: float | None = None,
    exclude: Sequence[str] = (),
    target: str = "onnxruntime",
    opset: int | None = None,
    keep_metadata: bool = False,
    sensitivity: Sensitivity | None = None,
    options: SensitivityOptions | None = None,
    evaluation: str | Dataset | None = None,
    metric: str | None = None,
    provider: str = "cpu",
    progress: Progress | None = None,
) -> Result:
    """Quantize the model in the file `model` to at most `size` and verify it.

    data: calibration inputs: what `amq_onnx.model.data.open_data` opens, a Dataset, or an onnxruntime
        CalibrationDataReader. Not needed with `sensitivity`.
    size: "0.2" or "20%" of the input file, "4MB", "300KB"; a float is a fraction.
    output: where to write the file; without it nothing is written.
    bits, activation_bits: widths to choose from; activation_bits None leaves activations float.
    target: what the file is for, "onnxruntime" or "standard".
    activation_average: bound on the element-weighted mean width of activations; needed with several widths.
    sensitivity: a table computed before. options: how to measure it otherwise.
    evaluation: data to verify on, by default the calibration data.

    Raises the errors of amq_onnx.errors: BudgetError (no plan fits), ModelError, DataError, UsageError,
    ProviderError.
    """
    path = Path(model)
    written = Path(output) if output is not None else None
    if written is not None:
        require_folder(written, "-o")
        if written.resolve() == path.resolve():
            raise UsageError(f"-o '{written}' is the float model itself: name another file")
    check_widths(bits, activation_bits, activation_average, target)
    proto = read_model(path)
    original = file_bytes(path)
    budget = parse_size(size).bytes(original)
    prepared = prepare(proto, opset=opset, exclude=tuple(exclude), target=target)
    calibration = dataset(data, proto)
    if sensitivity is None:
        if calibration is None:
            raise UsageError("sensitivity needs calibration data: give --data (or --random)")
        sensitivity = measure_sensitivity(prepared, calibration, bits, activation_bits, options, progress)
    compiler = Compiler(
        prepared,
        sensitivity,
        bits,
        activation_bits,
        activation_average=activation_average,
        keep_metadata=keep_metadata,
    )
    best = compiler.best(budget)
    quantized = best.model
    result = Result(
        model=quantized,
        plan=best.plan,
        sensitivity=sensitivity,
        bytes=best.bytes,
        float_bytes=original,
        budget=budget,
        predicted_bytes=best.predicted_bytes,
        perturbation=best.allocation.loss,
        shares=compiler.shares(best.allocation),
        oldest_runtime=oldest_runtime(quantized),
    )
    against = dataset(evaluation, proto) if evaluation is not None else calibration
    if against is not None:
        result = replace(result, verification=_verified(path, quantized, against, metric, provider, progress))
    if written is not None:
        write_model(quantized, written)
    return result


def _verified(
    path: Path,
    quantized: onnx.ModelProto,
    data: Dataset,
    metric: str | None,
    provider: str,
    progress: Progress | None,
) -> Any:
    from amq_onnx.runtime.verification import verify

    with tempfile.TemporaryDirectory(prefix="amq-") as folder:
        written = Path(folder) / "quantized.onnx"
        write_model(quantized, written)
        return verify(path, written, data, metric=metric, provider=provider, progress=progress)


def check_widths(
    bits: Sequence[int], activation_bits: Sequence[int] | None, activation_average: float | None, target: str
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


def dataset(data: str | Dataset | CalibrationDataReader | None, model: onnx.ModelProto) -> Dataset | None:
    """`data` in any of its forms, as a Dataset for `model`."""
    if data is None or isinstance(data, Dataset):
        return data
    return open_data(data, model) if isinstance(data, str) else reader_data(data, model)
