"""Rival strategies side by side: one quantizer, one budget, one tuning, the same data, so that only widths differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from amq_onnx.allocation import Allocation
from amq_onnx.calibration import Progress
from amq_onnx.compiler import Candidate, Compiler
from amq_onnx.errors import UsageError
from amq_onnx.measurement import Method, SensitivityOptions, measure_sensitivity
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import file_bytes, read_model, write_model
from amq_onnx.pipeline import check_widths, file_of, tuned, tuner_for
from amq_onnx.plan import Plan
from amq_onnx.rewriting import prepare
from amq_onnx.runtime.verification import Comparison, Evaluator
from amq_onnx.sensitivity import Sensitivity
from amq_onnx.sizes import parse_size
from amq_onnx.strategies import haq
from amq_onnx.strategies.plain import fitting, mean_traces, random_widths, uniform, uniform_bytes, worst
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.tuner import TuneMethod, TuningOptions

Strategy = Literal["hybrid", "trace", "eigenvalue", "norm", "uniform", "worst", "random", "haq"]
"""`hybrid`: what `quantize` does. `trace`: AMQ's formula. `eigenvalue`: HAWQ. `norm`: ||Q(W) - W||^2 alone. `uniform`:
the widest width that all can have. `worst`: the largest perturbation of the same size and order. `random`: widths drawn
at random. `haq`: the agent of HAQ."""

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
_METHODS: dict[Strategy, Method] = {
    "hybrid": "hybrid",
    "trace": "gauss-newton",
    "eigenvalue": "eigenvalue",
    "norm": "norm",
}
# Samples that the agent's plans are scored on.
_REWARD_SAMPLES = 256


@dataclass(frozen=True, eq=False)
class Row:
    """What became of one strategy.

    perturbation: sum of the plan's mean-trace(H) ||Q(W) - W||^2, whatever the strategy went by. comparison: with the
    float model, on the data to verify on. seconds: from the data to the widths, the ranges of activations included.
    files: how many were evaluated to find the widths.
    """

    strategy: Strategy
    plan: Plan
    bytes: int
    perturbation: float
    comparison: Comparison
    seconds: float
    files: int = 0


@dataclass(frozen=True, eq=False)
class ComparisonTable:
    """All rows; budget in bytes; the table of traces, by which perturbations are told."""

    budget: int
    float_bytes: int
    traces: Sensitivity
    rows: tuple[Row, ...]


def compare(
    model: str | Path,
    data: Dataset,
    *,
    size: str | float | None = None,
    uniform_bits: int | None = None,
    strategies: Sequence[Strategy] = STRATEGIES,
    bits: Sequence[int] = tuple(range(2, 9)),
    activation_bits: Sequence[int] | None = (8,),
    activation_average: float | None = None,
    exclude: Sequence[str] = (),
    target: str = "onnxruntime",
    opset: int | None = None,
    options: SensitivityOptions | None = None,
    tune: TuneMethod | TuningOptions = "none",
    agent: haq.AgentOptions | None = None,
    evaluation: Dataset | None = None,
    metric: str | None = None,
    provider: str = "cpu",
    output: Path | None = None,
    progress: Progress | None = None,
) -> ComparisonTable:
    """Choose widths by each of `strategies` for files of at most `size`, and verify all of them alike.

    size: as of `amq_onnx.quantize`; or uniform_bits: the bytes of the file whose weights all have so many bits.
    options: of the measurements, but for their method; random draws and the agent follow from their seed. tune: what is
    learned once the widths are chosen. evaluation: data to verify on, by default `data`. output: a folder for the
    files, each named after its strategy.

    Raises what `quantize` raises.
    """
    path = Path(model)
    check_widths(bits, activation_bits, activation_average, target)
    unknown = sorted(set(strategies) - set(STRATEGIES))
    if unknown:
        raise UsageError(f"--strategies: '{unknown[0]}' is unknown: use {', '.join(STRATEGIES)}")
    if (size is None) == (uniform_bits is None):
        raise UsageError("give either --size or --uniform-bits")
    if uniform_bits is not None and uniform_bits not in bits:
        raise UsageError(f"--uniform-bits {uniform_bits} is not among --bits")
    if "haq" in strategies:
        haq.require_agent()
    proto = read_model(path)
    prepared = prepare(proto, opset=opset, exclude=tuple(exclude), target=target)
    options = options or SensitivityOptions()

    def table(method: Method) -> tuple[Compiler, float]:
        start = time.perf_counter()
        settings = replace(options, method=method)
        found = measure_sensitivity(prepared, data, bits, activation_bits, settings, progress)
        compiler = Compiler(prepared, found, bits, activation_bits, activation_average=activation_average)
        return compiler, time.perf_counter() - start

    # What all need first: scales of weights and ranges of activations.
    ranges, ranges_seconds = table("norm")
    traced, traced_seconds = table("gauss-newton")
    traces = traced.space.sensitivity
    if uniform_bits is None:
        assert size is not None
        budget = parse_size(size).bytes(file_bytes(path))
    else:
        budget = uniform_bytes(traced, uniform_bits)
    seed = options.seed
    evaluator = Evaluator(path, evaluation or data, metric=metric, provider=provider, progress=progress)
    tuner = tuner_for(tune, data, Checkpoint(None), progress)

    def searched(strategy: Strategy) -> tuple[Compiler, Candidate, float, int]:
        if strategy in _METHODS:
            method = _METHODS[strategy]
            measured = {"norm": (ranges, ranges_seconds), "gauss-newton": (traced, traced_seconds)}
            compiler, seconds = measured.get(method) or table(method)
            start = time.perf_counter()
            best = compiler.best(budget)
            return compiler, best, seconds + time.perf_counter() - start, 0
        start = time.perf_counter()
        files = 0
        if strategy == "haq":
            reward = _Reward(path, data.first(_REWARD_SAMPLES), traced, metric, progress)
            found = haq.search(traced, budget, reward, agent or haq.AgentOptions(seed=seed))
            choice, files = found.allocation.choice, reward.files
            problem = traced.space.problem
            candidate = fitting(
                traced, budget, lambda allowed: problem.allocation(haq.lowered(traced, choice, allowed))
            )
        else:
            choose: dict[str, Callable[[int], Allocation]] = {
                "uniform": lambda allowed: uniform(traced, allowed),
                "random": lambda allowed: random_widths(traced, allowed, seed),
                "worst": lambda allowed: worst(traced, allowed, _order(traces)),
            }
            candidate = fitting(traced, budget, choose[strategy])
        before = traced_seconds if strategy == "worst" else ranges_seconds
        return traced, candidate, before + time.perf_counter() - start, files

    rows = []
    for number, strategy in enumerate(strategies):
        compiler, candidate, seconds, files = searched(strategy)
        if tuner is not None:
            candidate, _ = tuned(compiler, candidate, tuner, strategy)
        with file_of(candidate.model) as written:
            comparison = evaluator.compare(written)
        if output is not None:
            write_model(candidate.model, output / f"{strategy}.onnx")
        perturbation = predicted(traces, candidate.plan)
        rows.append(Row(strategy, candidate.plan, candidate.bytes, perturbation, comparison, seconds, files))
        if progress is not None:
            progress("strategies", number + 1, len(strategies))
    return ComparisonTable(budget, file_bytes(path), traces, tuple(rows))


def predicted(table: Sensitivity, plan: Plan) -> float:
    """What `table` expects of a plan: the sum over all sites that it knows."""
    weights = sum(table.weights[name].omega(bits) for name, bits in plan.weights.items() if name in table.weights)
    rows = table.activations
    return weights + sum(rows[name].omega(site.bits) for name, site in plan.activations.items() if name in rows)


class _Reward:
    """How far a plan's file is below the float model, in HAQ's units: a tenth of the percentage points."""

    def __init__(
        self, path: Path, data: Dataset, compiler: Compiler, metric: str | None, progress: Progress | None
    ) -> None:
        self.evaluator = Evaluator(path, data, metric=metric)
        self.compiler = compiler
        self.progress = progress
        self.files = 0

    def __call__(self, allocation: Allocation) -> float:
        with file_of(self.compiler.candidate(allocation).model) as written:
            drop = self.evaluator.compare(written).drop
        self.files += 1
        if self.progress is not None:
            self.progress("files that the agent tries", self.files, None)
        return -10.0 * drop


def _order(traces: Sensitivity) -> list[str]:
    rows: list[tuple[str, Any]] = [*traces.weights.items(), *traces.activations.items()]
    return mean_traces([(name, row.trace, row.elements) for name, row in rows])
