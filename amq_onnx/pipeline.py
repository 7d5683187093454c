"""The whole way from a float model to a verified quantized one: the one place that knows it."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from amq_onnx.allocation import Allocation, Infeasible, frontier, smallest, solve
from amq_onnx.calibration import Progress, calibrate
from amq_onnx.costs import SearchSpace, search_space
from amq_onnx.errors import BudgetError, UsageError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import CalibrationDataReader, Dataset, open_data, reader_data
from amq_onnx.model.file import file_bytes, fingerprint, model_bytes, read_model, require_folder, write_model
from amq_onnx.model.heads import find_heads
from amq_onnx.plan import Plan
from amq_onnx.quantizer.activation_ranges import activation_encoding, activation_range
from amq_onnx.quantizer.encoding import RangeMethod
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import Prepared, lower, oldest_runtime, prepare, simulate
from amq_onnx.sensitivity import ActivationRow, Sensitivity, WeightRow, require_same_model
from amq_onnx.sizes import Size, parse_size
from amq_onnx.traces import Method, losses_for, measure_traces

# After the budget is met once, what the file really took corrects the search; it settles in one or two rounds.
_CORRECTIONS = 4


@dataclass(frozen=True)
class SensitivityOptions:
    """How sensitivity is measured.

    method: `gauss-newton` (label-free) or `hessian` (labels). relative_error: asked of every trace. samples: how
    many of the calibration samples curvature is measured on; ranges always see all.
    """

    method: Method = "gauss-newton"
    loss: str = "auto"
    ranges: RangeMethod = "mse"
    relative_error: float = 0.05
    max_probes: int = 128
    samples: int = 256
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """A Pareto-optimal plan: its predicted file size and perturbation."""

    bytes: int
    perturbation: float
    plan: Plan


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


def measure_sensitivity(
    prepared: Prepared,
    data: Dataset,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int] | None,
    options: SensitivityOptions | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """The table of every site at the asked widths, from one pass for ranges and a few for curvature."""
    _require_weights(prepared)
    options = options or SensitivityOptions()
    heads, left_out = find_heads(prepared.model, options.loss)
    executor = Executor(prepared.model, device=options.device)
    activations = [site.name for site in prepared.sites.activations] if activation_bits else []
    seen = calibrate(executor, data, activations, [head.tensor for head in heads], progress)
    ranges = {
        name: {bits: activation_range(seen.histograms[name], bits, options.ranges) for bits in activation_bits or ()}
        for name in activations
    }
    encodings = {
        name: {bits: activation_encoding(*ends, bits) for bits, ends in by_bits.items()}
        for name, by_bits in ranges.items()
    }
    traces = measure_traces(
        executor,
        data.first(options.samples),
        {site.name: site.axis for site in prepared.sites.weights},
        encodings,
        heads,
        losses_for(heads, seen.mean_square),
        method=options.method,
        relative_error=options.relative_error,
        max_probes=options.max_probes,
        batch_size=seen.curvature_batch_size(),
        seed=options.seed,
        progress=progress,
    )
    weights = {}
    for number, site in enumerate(prepared.sites.weights):
        found = weight_encodings(prepared.weight(site.name), site.axis, weight_bits, options.ranges)
        trace = traces.weights[site.name]
        errors = {bits: found.squared_error(bits) for bits in sorted(found.errors)}
        weights[site.name] = WeightRow(site.shape, trace.trace, trace.error, errors)
        if progress is not None:
            progress("scales of weights", number + 1, len(prepared.sites.weights))
    rows = {}
    for name in activations:
        trace = traces.activations[name]
        perturbation = {bits: value for bits, (value, _) in trace.perturbation.items()}
        rows[name] = ActivationRow(trace.elements, trace.trace, trace.error, ranges[name], perturbation)
    return Sensitivity(
        model=fingerprint(prepared.model),
        method=options.method,
        loss={head.tensor: f"{head.loss}: {head.why}" for head in heads}
        | {name: f"left out: {reason}" for name, reason in left_out.items()},
        samples=traces.samples,
        probes=traces.probes,
        converged=traces.converged,
        seed=options.seed,
        ranges=options.ranges,
        weights=weights,
        activations=rows,
        left_float=prepared.sites.left_float,
    )


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan that was built: its allocation, its model, the file's bytes and what the search expected."""

    allocation: Allocation
    plan: Plan
    model: onnx.ModelProto
    bytes: int
    predicted_bytes: int


class Compiler:
    """Plans and files of one prepared model and one sensitivity table, for any budget.

    The bytes that don't depend on widths are measured once, on a file of the smallest widths.
    """

    def __init__(
        self,
        prepared: Prepared,
        sensitivity: Sensitivity,
        weight_bits: Sequence[int],
        activation_bits: Sequence[int] | None,
        *,
        activation_average: float | None = None,
        keep_metadata: bool = False,
    ) -> None:
        _require_weights(prepared)
        require_same_model(sensitivity.model, fingerprint(prepared.model), "the sensitivity table")
        self.prepared = prepared
        self.keep_metadata = keep_metadata
        self.space: SearchSpace = search_space(prepared, sensitivity, weight_bits, activation_bits)
        self.second_budget = self.space.second_budget(activation_average)
        self.activation_average = activation_average
        try:
            least = smallest(self.space.problem, self.second_budget)
            reference = solve(self.space.problem, least, self.second_budget)
        except Infeasible as error:
            narrowest = min(activation_bits or (8,))
            raise BudgetError(
                f"--activation-average {activation_average:g} can't be met with --activation-bits of {narrowest} "
                f"and more: the smallest possible average is {error.smallest / self.space.activation_elements:.2f}"
            ) from error
        self.least_model = self.build(self.space.plan(reference))
        self.least_bytes = len(model_bytes(self.least_model))
        self.base = self.least_bytes - reference.size

    def build(self, plan: Plan) -> onnx.ModelProto:
        """The file's model for `plan`."""
        return compile_plan(self.prepared, plan, keep_metadata=self.keep_metadata)

    def best(self, budget: int) -> Candidate:
        """The optimal plan whose file takes no more than `budget` bytes, and that file.

        What widths share (tables, constants) depends on the plan by some hundred bytes, so the first file tells
        the bytes that don't depend on widths, and the search is done again with them until they agree.
        Raises BudgetError with the smallest size that is possible.
        """
        base = self.base
        found: Candidate | None = None
        for _ in range(_CORRECTIONS):
            try:
                allocation = solve(self.space.problem, budget - base, self.second_budget)
            except Infeasible:
                break
            plan = self.space.plan(allocation)
            if found is not None and plan == found.plan:
                found = replace(found, predicted_bytes=base + allocation.size)
                break
            model = self.build(plan)
            measured = len(model_bytes(model))
            if measured <= budget and (found is None or allocation.loss <= found.allocation.loss):
                found = Candidate(allocation, plan, model, measured, base + allocation.size)
            if measured - allocation.size == base:
                break
            base = measured - allocation.size
        if found is None:
            raise BudgetError(
                f"no plan fits {budget:,} bytes: the smallest file with these widths has {self.least_bytes:,} "
                f"(--size {self.least_bytes}B); a smaller one needs narrower --bits"
            )
        return found

    def frontier(self, points: int) -> list[FrontierPoint]:
        """Pareto-optimal plans in rising size."""
        found = frontier(self.space.problem, points=points, second_budget=self.second_budget)
        return [FrontierPoint(self.base + entry.size, entry.loss, self.space.plan(entry)) for entry in found]

    def shares(self, allocation: Allocation) -> dict[str, float]:
        """Each site's share of the predicted perturbation."""
        losses = {
            name: self.space.problem.loss[index][option]
            for index, (name, option) in enumerate(
                zip((*self.space.weights, *self.space.activations), allocation.choice, strict=True)
            )
        }
        total = sum(losses.values()) or 1.0
        return {name: loss / total for name, loss in losses.items()}


def compile_plan(prepared: Prepared, plan: Plan, *, keep_metadata: bool = False) -> onnx.ModelProto:
    """The file's model for `plan`: simulated graph, then the target's packed form."""
    encodings = plan.encodings(prepared)
    return lower(prepared, simulate(prepared, encodings), encodings, keep_metadata=keep_metadata)


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
    activation_average: bound on the element-weighted mean width of activations; needed with several widths.
    sensitivity: a table computed before. options: how to measure it otherwise.
    evaluation: data to verify on, by default the calibration data.

    Raises the errors of amq_onnx.errors: BudgetError (no plan fits), ModelError, DataError, UsageError,
    ProviderError.
    """
    path = Path(model)
    target = Path(output) if output is not None else None
    if target is not None:
        require_folder(target, "-o")
    check_widths(activation_bits, activation_average)
    proto = read_model(path)
    original = file_bytes(path)
    budget = parse_size(size).bytes(original)
    prepared = prepare(proto, opset=opset, exclude=tuple(exclude))
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
    if target is not None:
        write_model(quantized, target)
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


def check_widths(activation_bits: Sequence[int] | None, activation_average: float | None) -> None:
    """Raise UsageError for activation widths that no budget decides between."""
    if activation_bits is not None and len(set(activation_bits)) > 1 and activation_average is None:
        raise UsageError(
            "several --activation-bits need --activation-average: narrow activations save no bytes, so nothing "
            "else decides between them"
        )
    if activation_average is not None and activation_bits is None:
        raise UsageError("--activation-average has no meaning with --activation-bits float")
    if activation_average is not None and not math.isfinite(activation_average):
        raise UsageError(f"--activation-average {activation_average} is not a number of bits")


def _require_weights(prepared: Prepared) -> None:
    if not prepared.sites.weights:
        raise UsageError("--exclude leaves no weight to quantize: exclude fewer sites")


def dataset(data: str | Dataset | CalibrationDataReader | None, model: onnx.ModelProto) -> Dataset | None:
    """`data` in any of its forms, as a Dataset for `model`."""
    if data is None or isinstance(data, Dataset):
        return data
    return open_data(data, model) if isinstance(data, str) else reader_data(data, model)


__all__ = [
    "Compiler",
    "FrontierPoint",
    "Result",
    "SensitivityOptions",
    "Size",
    "compile_plan",
    "measure_sensitivity",
    "quantize",
]
