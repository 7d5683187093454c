"""Rival strategies side by side: one quantizer, one budget, one tuning, the same data, so that only widths differ."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from amq_onnx.allocation import Allocation
from amq_onnx.calibration import Progress
from amq_onnx.compiler import Candidate, Compiler
from amq_onnx.errors import UsageError
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import Method, SensitivityOptions
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import file_bytes, read_model, write_model
from amq_onnx.pipeline import check_widths, file_of, tuned, tuner_for
from amq_onnx.plan import Plan
from amq_onnx.rewriting import Prepared, prepare
from amq_onnx.runtime.verification import Comparison, Evaluator
from amq_onnx.sensitivity import Sensitivity
from amq_onnx.sizes import parse_size
from amq_onnx.strategies import haq
from amq_onnx.strategies.plain import fitting, mean_traces, random_widths, sampled, uniform, uniform_bytes, worst
from amq_onnx.tuning.checkpoint import Checkpoint
from amq_onnx.tuning.finetune import FineTuneOptions, fine_tune
from amq_onnx.tuning.tuner import TuneMethod, TuningOptions, learnable

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
# Samples that the agent's plans are trained and scored on, and how many make a step.
_REWARD_SAMPLES = 256
_REWARD_BATCH = 32


@dataclass(frozen=True)
class Seconds:
    """A span of time, or a moment: by the clock, and what the processor worked for this process, summed over threads.
    The second hardly depends on what else the machine does."""

    clock: float = 0.0
    processor: float = 0.0

    @staticmethod
    def now() -> Seconds:
        """This moment."""
        return Seconds(time.perf_counter(), time.process_time())

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock + other.clock, self.processor + other.processor)

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.clock - other.clock, self.processor - other.processor)


@dataclass(frozen=True, eq=False)
class Row:
    """What became of one strategy at one budget, in bytes.

    perturbation: sum of the plan's mean-trace(H) ||Q(W) - W||^2, whatever the strategy went by. comparison: with the
    float model, on the data to verify on. search: from the data to the widths, the ranges of activations included.
    files, file_search: how many were evaluated to find the widths, and the part of the search that this took.
    """

    strategy: Strategy
    budget: int
    plan: Plan
    bytes: int
    perturbation: float
    comparison: Comparison
    search: Seconds
    files: int = 0
    file_search: Seconds = Seconds()


@dataclass(frozen=True, eq=False)
class ComparisonTable:
    """All rows, budget by budget; the table of traces, by which perturbations are told.

    sampled, frontier: bytes and perturbation of settings drawn at random, and of the Pareto-optimal ones; empty where
    they were not asked for.
    """

    float_bytes: int
    traces: Sensitivity
    rows: tuple[Row, ...]
    sampled: Sequence[tuple[int, float]] = ()
    frontier: Sequence[tuple[int, float]] = ()


def compare(
    model: str | Path,
    data: Dataset,
    *,
    sizes: Sequence[str | float] = (),
    uniform_bits: Sequence[int] = (),
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
    settings: int = 0,
    progress: Progress | None = None,
) -> ComparisonTable:
    """Choose widths by each of `strategies` for files of at most each of `sizes`, and verify all of them alike.

    sizes: each as of `amq_onnx.quantize`; uniform_bits: more of them, the bytes of files whose weights all have so many
    bits. options: of the measurements, but for their method; random draws and the agent follow from their seed. tune:
    what is learned once the widths are chosen. evaluation: data to verify on, by default `data`. output: a folder for
    the files, each named after its strategy. settings: how many are drawn at random beside the frontier, 0 for neither.

    Raises what `quantize` raises.
    """
    path = Path(model)
    check_widths(bits, activation_bits, activation_average, target)
    unknown = sorted(set(strategies) - set(STRATEGIES))
    if unknown:
        raise UsageError(f"--strategies: '{unknown[0]}' is unknown: use {', '.join(STRATEGIES)}")
    if not sizes and not uniform_bits:
        raise UsageError("give --size or --uniform-bits")
    if missing := sorted(set(uniform_bits) - set(bits)):
        raise UsageError(f"--uniform-bits {missing[0]} is not among --bits")
    if "haq" in strategies:
        haq.require_agent()
    proto = read_model(path)
    prepared = prepare(proto, opset=opset, exclude=tuple(exclude), target=target)
    tuner = tuner_for(tune, data, Checkpoint(None), progress)
    options = (options or SensitivityOptions()).before(learning=tuner is not None)

    # A script's first imports, a second for scikit-learn's, are no part of the first strategy's search.
    next(data.first(1).batches(1), None)
    tables = _Tables(prepared, data, bits, activation_bits, activation_average, options, progress)
    original = file_bytes(path)
    traced, _ = tables("gauss-newton")
    traces = traced.space.sensitivity
    budgets = [parse_size(size).bytes(original) for size in sizes]
    budgets += [uniform_bytes(traced, width) for width in uniform_bits]
    agent = agent or haq.AgentOptions(seed=options.seed)
    reward = _Reward(path, data, traced, metric, agent, options.device, progress) if "haq" in strategies else None
    evaluator = Evaluator(path, evaluation or data, metric=metric, provider=provider, progress=progress)
    rows = []
    for budget in budgets:
        for strategy in strategies:
            searched = _searched(strategy, tables, budget, agent, reward)
            candidate = searched.candidate
            if tuner is not None:
                candidate, _ = tuned(searched.compiler, candidate, tuner, f"{strategy}-{budget}")
            with file_of(candidate.model) as written:
                comparison = evaluator.compare(written)
            if output is not None:
                name = strategy if len(budgets) == 1 else f"{strategy}-{budget}"
                write_model(candidate.model, output / f"{name}.onnx")
            plan = candidate.plan
            told = predicted(traces, plan)
            found = (candidate.bytes, told, comparison, searched.search, searched.files, searched.file_search)
            rows.append(Row(strategy, budget, plan, *found))
            if progress is not None:
                progress("strategies", len(rows), len(strategies) * len(budgets))
    drawn = sampled(traced, settings, options.seed)
    frontier = [(point.bytes, point.perturbation) for point in (traced.frontier(settings) if settings else ())]
    return ComparisonTable(original, traces, tuple(rows), drawn, frontier)


@dataclass(frozen=True, eq=False)
class _Tables:
    """Sensitivity tables by method, each measured once, and how long it took."""

    prepared: Prepared
    data: Dataset
    bits: Sequence[int]
    activation_bits: Sequence[int] | None
    activation_average: float | None
    options: SensitivityOptions
    progress: Progress | None
    _known: dict[Method, tuple[Compiler, Seconds]] = field(default_factory=dict)

    def __call__(self, method: Method) -> tuple[Compiler, Seconds]:
        """The compiler of a method's table."""
        if method not in self._known:
            start = Seconds.now()
            # All strategies quantize the same tensors, so that only widths differ.
            options = replace(self.options, method=method, float_where_needed=False)
            table = measure_sensitivity(
                self.prepared, self.data, self.bits, self.activation_bits, options, self.progress
            )
            average = self.activation_average
            compiler = Compiler(self.prepared, table, self.bits, self.activation_bits, activation_average=average)
            self._known[method] = compiler, Seconds.now() - start
        return self._known[method]


@dataclass(frozen=True, eq=False)
class _Searched:
    """A plan as built, by which compiler, how long from the data to it, and the files that were evaluated."""

    candidate: Candidate
    compiler: Compiler
    search: Seconds
    files: int = 0
    file_search: Seconds = Seconds()


def _searched(
    strategy: Strategy, tables: _Tables, budget: int, agent: haq.AgentOptions, reward: _Reward | None
) -> _Searched:
    """The widths that a strategy chooses, and their file."""
    if strategy in _METHODS:
        compiler, measured = tables(_METHODS[strategy])
        start = Seconds.now()
        candidate = compiler.best(budget)
        return _Searched(candidate, compiler, measured + Seconds.now() - start)
    traced, measured = tables("gauss-newton")
    traces, problem = traced.space.sensitivity, traced.space.problem
    if strategy != "worst":
        _, measured = tables("norm")  # scales and ranges are all that the others need to know
    start = Seconds.now()
    files, file_search = 0, Seconds()
    if strategy == "uniform":
        return _Searched(uniform(traced, budget), traced, measured + Seconds.now() - start)
    choose: Callable[[int], Allocation]
    match strategy:
        case "random":
            choose = partial(random_widths, traced, seed=tables.options.seed)
        case "worst":
            choose = partial(worst, traced, order=_order(traces))
        case _:
            assert reward is not None
            known, spent = reward.files, reward.spent
            choice = haq.search(traced, budget, reward, agent).allocation.choice
            files, file_search = reward.files - known, reward.spent - spent

            def choose(allowed: int) -> Allocation:
                return problem.allocation(haq.lowered(traced, choice, allowed))

    candidate = fitting(traced, budget, choose)
    return _Searched(candidate, traced, measured + Seconds.now() - start, files, file_search)


def predicted(table: Sensitivity, plan: Plan) -> float:
    """What `table` expects of a plan: the sum over all sites that it knows."""
    weights = sum(table.weights[name].omega(bits) for name, bits in plan.weights.items() if name in table.weights)
    rows = table.activations
    return weights + sum(rows[name].omega(site.bits) for name, site in plan.activations.items() if name in rows)


class _Reward:
    """How far a plan's file is below the float model, in HAQ's units: a tenth of the percentage points. Each is trained
    before, by the float model and the data."""

    def __init__(
        self,
        path: Path,
        data: Dataset,
        compiler: Compiler,
        metric: str | None,
        agent: haq.AgentOptions,
        device: str,
        progress: Progress | None,
    ) -> None:
        self.data = data.first(_REWARD_SAMPLES)
        self.evaluator = Evaluator(path, self.data, metric=metric)
        self.compiler = compiler
        self.training = FineTuneOptions(epochs=agent.epochs, batch_size=_REWARD_BATCH, seed=agent.seed, device=device)
        self.progress = progress
        self.files = 0
        self.spent = Seconds()

    def __call__(self, allocation: Allocation) -> float:
        start = Seconds.now()
        candidate = self.compiler.candidate(allocation)
        if self.training.epochs:
            candidate = self.compiler.tuned(candidate, self._trained)
        with file_of(candidate.model) as written:
            drop = self.evaluator.compare(written).drop
        self.files += 1
        self.spent += Seconds.now() - start
        if self.progress is not None:
            self.progress("files that the agent tries", self.files, None)
        return -10.0 * drop

    def _trained(self, model: onnx.ModelProto, quantized: onnx.ModelProto) -> dict[str, NDArray[np.float32]]:
        chosen = self.compiler.space.sensitivity.loss
        given = learnable(model, quantized, chosen, self.data, self.training.device)
        return fine_tune(*given, self.data, self.training)[0]


def _order(traces: Sensitivity) -> list[str]:
    rows: list[tuple[str, Any]] = [*traces.weights.items(), *traces.activations.items()]
    return mean_traces([(name, row.trace, row.elements) for name, row in rows])
