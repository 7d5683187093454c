"""How well each way to measure sensitivity predicts what a width costs, and what plans follow from it.

    AMQ_DATA=... python benchmarks/sensitivity.py [resnet20 transformer magika mobilenetv2] [--tune] [--hessian]

For every method: Spearman's rank correlation of its score with the measured loss of one quantized site on held-out data
(Kullback-Leibler divergence; every site at 2, 3, 4 and 8 bits, then all widths together), weights and activations;
regret, the loss of its plan on held-out data over that of the best method's plan, at four sizes (and their geometric
mean); seconds beyond ranges and scales, the same as whole forward passes of one sample, and over brute force. Brute
force is a whole pass of 64 inputs for every site and width; its seconds are those of one such pass times the entries.
`additive truth` is the plan of the held-out losses themselves: what a sum of losses of single sites can reach, and no
measurement can know. Held-out data are never calibrated on. With --tune, the same plans after learned rounding. Rows go
to out/sensitivity_MODEL.json, held-out losses to out/sensitivity_MODEL.npz, to be used again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import file_types
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from real_data import Batch, data_folder
from resnet20 import training_images
from scipy.stats import spearmanr

import amq_onnx
from amq_onnx.calibration import tensors
from amq_onnx.compiler import Compiler
from amq_onnx.executor.interpreter import Executor
from amq_onnx.measurement import Method, SensitivityOptions, measure_sensitivity, perturbations
from amq_onnx.model.data import Dataset, open_data
from amq_onnx.model.file import file_bytes, read_model
from amq_onnx.model.heads import find_heads
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.weight_ranges import encoding_at
from amq_onnx.rewriting import prepare
from amq_onnx.sensitivity import Sensitivity
from amq_onnx.site_losses import measure_losses
from amq_onnx.traces import losses_for

_HERE = Path(__file__).resolve().parent
_OUT = Path("out")
WIDTHS = (2, 3, 4, 8)
WEIGHT_BITS = tuple(range(2, 9))
BRUTE_FORCE = "brute force, 64 inputs"
TRUTH = "additive truth"
_COMMON = ("ranges of activations", "scales of weights", "curvature of ranges")
_HESSIAN = SensitivityOptions(method="hessian", samples=32, max_probes=4)


@dataclass(frozen=True)
class Case:
    """A model, its data, how many held-out samples, and the sizes of its plans."""

    name: str
    model: Callable[[], str]
    calibration: str
    held_out: str
    samples: int
    sizes: tuple[float, ...]
    labelled: str | None = None


def _script(name: str, function: str) -> str:
    return f"{_HERE / name}:{function}"


_DIGITS = _HERE.parent / "models"
CASES = (
    Case(
        "resnet20",
        lambda: str(data_folder() / "resnet20_cifar10_op20.onnx"),
        _script("real_data.py", "resnet20_calibration"),
        _script("real_data.py", "resnet20_test"),
        1000,
        (0.18, 0.145, 0.13, 0.115),
        _script("resnet20.py", training_images.__name__),
    ),
    Case(
        "transformer",
        lambda: str(_DIGITS / "digits_transformer.onnx"),
        f"{_DIGITS / 'digits.py'}:calibration",
        f"{_DIGITS / 'digits.py'}:test",
        500,
        (0.22, 0.18, 0.16, 0.14),
        _script("sensitivity.py", "labelled_digits"),
    ),
    Case(
        "magika",
        file_types.model,
        _script("file_types.py", "calibration"),
        _script("file_types.py", "test"),
        600,
        (0.2, 0.16, 0.14, 0.12),
    ),
    Case(
        "mobilenetv2",
        lambda: str(data_folder() / "mobilenetv2_imagenet_op20.onnx"),
        _script("real_data.py", "mobilenetv2_calibration"),
        _script("real_data.py", "mobilenetv2_test"),
        100,
        (0.2, 0.17, 0.15, 0.135),
    ),
)


def labelled_digits() -> Iterator[Batch]:
    """The calibration images of the digits with their labels."""
    import sys

    sys.path.insert(0, str(_DIGITS))
    from digits import CALIBRATION_IMAGES, split

    train, _ = split()
    yield {name: array[:CALIBRATION_IMAGES] for name, array in train.items()}


class Stopwatch:
    """Seconds since what all methods share was done, told by the progress of a measurement."""

    def __init__(self) -> None:
        self.shared = time.perf_counter()

    def __call__(self, step: str, done: int, of: int | None) -> None:
        """See Progress."""
        if step in _COMMON:
            self.shared = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self.shared


@dataclass
class Row:
    """A method. plans, tuned: held-out loss of its plan at each size."""

    name: str
    table: Sensitivity
    seconds: float
    plans: list[float] = field(default_factory=list)
    tuned: list[float] = field(default_factory=list)


class Bench:
    """One model: its sites at all widths, the losses on held-out data, and the plans of tables."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.path = Path(case.model())
        self.prepared = prepare(read_model(self.path))
        self.executor = Executor(self.prepared.model)
        self.calibration = open_data(case.calibration, self.prepared.model)
        self.held_out = open_data(case.held_out, self.prepared.model, case.samples)
        self.heads, _ = find_heads(self.prepared.model)
        self.known: dict[tuple[bool, tuple[int, ...]], float] = {}

    def measured(self, options: SensitivityOptions, data: Dataset | None = None) -> tuple[Sensitivity, float]:
        """The table of the asked method and its seconds."""
        watch = Stopwatch()
        table = measure_sensitivity(self.prepared, data or self.calibration, WEIGHT_BITS, WIDTHS, options, watch)
        return table, watch.seconds()

    def losses(self, table: Sensitivity, data: Dataset) -> Sensitivity:
        """`table` with the losses measured on `data`, all samples alike."""
        weights = {
            site.name: {
                bits: encoding_at(self.prepared.weight(site.name), site.axis, bits, known=table.scales.get(site.name))
                for bits in WEIGHT_BITS
            }
            for site in self.prepared.sites.weights
        }
        activations = {
            name: {bits: activation_encoding(*ends, bits) for bits, ends in row.ranges.items()}
            for name, row in table.activations.items()
        }
        sites = perturbations(self.executor, self.prepared, weights, activations, table.expected_inputs)
        samples = data.samples()
        uniform = torch.full((samples,), 1 / samples, dtype=torch.float64)
        losses = losses_for(self.heads, self._mean_squares(data, samples))
        found = measure_losses(
            self.executor, data, uniform, sites, self.heads, losses, method="measured", batch_size=self._batch()
        ).losses
        return with_losses(table, found)

    def truth(self, table: Sensitivity) -> Sensitivity:
        """The losses on held-out data, kept in a file for the next run."""
        path = _OUT / f"sensitivity_{self.case.name}.npz"
        if path.is_file():
            with np.load(path, allow_pickle=False) as kept:
                if str(kept["model"]) == table.model and int(kept["samples"]) == self.case.samples:
                    found: dict[str, dict[int, tuple[float, float]]] = {}
                    for name, bits, value in zip(kept["sites"], kept["bits"], kept["losses"], strict=True):
                        found.setdefault(str(name), {})[int(bits)] = (float(value), 0.0)
                    return with_losses(table, found)
        exact = self.losses(table, self.held_out)
        rows = {**exact.weights, **exact.activations}
        entries = [(name, bits, row.loss[bits][0]) for name, row in rows.items() for bits in row.loss]
        sites, widths, values = zip(*entries, strict=True)
        _OUT.mkdir(exist_ok=True)
        np.savez(path, model=table.model, samples=self.case.samples, sites=sites, bits=widths, losses=values)
        return exact

    def forward_seconds(self, inputs: int = 64) -> float:
        """Seconds of a whole pass of that many inputs."""
        batches = [tensors(batch, self.executor) for batch in self.calibration.first(inputs).batches(self._batch())]
        names = [head.tensor for head in self.heads]
        runs = []
        with torch.inference_mode():
            for _ in range(4):
                start = time.perf_counter()
                for batch in batches:
                    self.executor.run(batch, names)
                runs.append(time.perf_counter() - start)
        return statistics.median(runs[1:])

    def plan_losses(self, table: Sensitivity, *, tune: bool) -> list[float]:
        """Held-out loss of the table's plan at each size."""
        compiler = Compiler(self.prepared, table, WEIGHT_BITS, [8])
        found = []
        for size in self.case.sizes:
            candidate = compiler.best(int(size * file_bytes(self.path)))
            key = (tune, tuple(candidate.plan.weights.values()))
            if key not in self.known:
                model = tuned(self.path, self.calibration, table, size) if tune else candidate.model
                self.known[key] = self.divergence(model)
            found.append(self.known[key])
        return found

    def divergence(self, model: onnx.ModelProto) -> float:
        """Mean loss of a quantized file against the float model on held-out data."""
        quantized, float_outputs = Executor(model), [head.output for head in self.heads]
        heads, _ = find_heads(model)
        names = [head.tensor for head in heads]
        assert [head.output for head in heads] == float_outputs
        losses = losses_for(self.heads, self._mean_squares(self.held_out, self.case.samples))
        total, samples = 0.0, 0
        with torch.inference_mode():
            for batch in self.held_out.batches(self._batch()):
                inputs = tensors(batch, self.executor)
                exact = self.executor.run(inputs, [head.tensor for head in self.heads])
                ours = quantized.run(inputs, names)
                for head, name, loss in zip(self.heads, names, losses, strict=True):
                    total += float(loss.divergence(exact[head.tensor].double(), ours[name].double()).sum())
                samples += self.held_out.count(batch)
        return total / samples

    def _mean_squares(self, data: Dataset, samples: int) -> dict[str, float]:
        squared = [head.tensor for head in self.heads if head.loss == "squared"]
        totals = dict.fromkeys(squared, 0.0)
        if squared:
            with torch.inference_mode():
                for batch in data.batches(self._batch()):
                    found = self.executor.run(tensors(batch, self.executor), squared)
                    for name in squared:
                        totals[name] += float(found[name].double().square().sum())
        return {name: total / samples for name, total in totals.items()}

    def _batch(self) -> int:
        return 8 if self.case.name == "mobilenetv2" else 32


def with_losses(table: Sensitivity, found: Mapping[str, Mapping[int, tuple[float, float]]]) -> Sensitivity:
    """`table` with other losses."""
    weights = {
        name: replace(row, trace=None, trace_error=None, loss=dict(found[name])) for name, row in table.weights.items()
    }
    activations = {
        name: replace(row, trace=None, trace_error=None, loss=dict(found[name]), perturbation={})
        for name, row in table.activations.items()
    }
    return replace(table, weights=weights, activations=activations)


def tuned(path: Path, calibration: Dataset, table: Sensitivity, size: float) -> onnx.ModelProto:
    """The file of the table's plan with learned rounding."""
    return amq_onnx.quantize(path, calibration, size=size, sensitivity=table, tune="rounding").model


def ranks(table: Sensitivity, truth: Sensitivity) -> dict[str, float]:
    """Rank correlations of the scores with the true losses: w2 ... a8 at one width, w, a and all at all of these."""
    found: dict[str, float] = {}
    every: list[tuple[float, float]] = []
    for kind, rows, exact in (
        ("w", table.weights, truth.weights),
        ("a", table.activations, truth.activations),
    ):
        of_kind: list[tuple[float, float]] = []
        for bits in WIDTHS:
            pairs = [(row.omega(bits), exact[name].omega(bits)) for name, row in rows.items()]
            found[f"{kind}{bits}"] = _rank(pairs)
            of_kind += pairs
        found[kind] = _rank(of_kind)
        every += of_kind
    return found | {"all": _rank(every)}


def _rank(pairs: list[tuple[float, float]]) -> float:
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def measure(bench: Bench, *, hessian: bool) -> list[Row]:
    """All tables: ours, brute force, and the held-out losses themselves."""
    rows = []
    methods: tuple[Method, ...] = ("gauss-newton", "quadratic", "hybrid")
    for method in methods:
        table, seconds = bench.measured(SensitivityOptions(method=method))
        rows.append(Row(method, table, seconds))
        print(f"{bench.case.name}: {method} measured", flush=True)
    if hessian and bench.case.labelled is not None:
        data = open_data(bench.case.labelled, bench.prepared.model)
        rows.append(Row("hessian, 32 samples", *bench.measured(_HESSIAN, data)))
    first = bench.calibration.first(64)
    entries = len(WEIGHT_BITS) * len(rows[0].table.weights) + len(WIDTHS) * len(rows[0].table.activations)
    rows.append(Row(BRUTE_FORCE, bench.losses(rows[0].table, first), entries * bench.forward_seconds()))
    rows.append(Row(TRUTH, bench.truth(rows[0].table), float("nan")))
    return rows


def run(case: Case, *, tune: bool, hessian: bool) -> None:
    """Print and write the rows of one model."""
    bench = Bench(case)
    rows = measure(bench, hessian=hessian)
    for row in rows:
        row.plans = bench.plan_losses(row.table, tune=False)
        if tune:
            row.tuned = bench.plan_losses(row.table, tune=True)
    brute = next(row.seconds for row in rows if row.name == BRUTE_FORCE)
    pass_seconds = bench.forward_seconds() / 64
    best = np.min([row.plans for row in rows if row.name != TRUTH], 0)
    best_tuned = np.min([row.tuned for row in rows if row.name != TRUTH], 0) if tune else None
    print(f"\n{case.name}: sizes {', '.join(map(str, case.sizes))}, best plans' losses {_numbers(best, '.2e')}")
    written = []
    for row in rows:
        correlation = ranks(row.table, rows[-1].table)
        line: dict[str, Any] = {
            "method": row.name,
            "seconds": row.seconds,
            "passes": row.seconds / pass_seconds,
            "of_brute_force": row.seconds / brute,
            "rank": correlation,
            "loss": row.plans,
            "regret": (row.plans / best).tolist(),
        }
        text = f"{row.name:24s} rank {' '.join(f'{key} {value:.3f}' for key, value in correlation.items())}\n"
        text += f"{'':24s} regret {_numbers(row.plans / best)}"
        if best_tuned is not None:
            line |= {"tuned_loss": row.tuned, "tuned_regret": (row.tuned / best_tuned).tolist()}
            text += f", tuned {_numbers(row.tuned / best_tuned)}"
        if row.name != TRUTH:
            text += f"; {row.seconds:.2f} s, {line['passes']:.0f} passes, {line['of_brute_force']:.2f} of brute force"
        print(text, flush=True)
        written.append(line)
    _OUT.mkdir(exist_ok=True)
    (_OUT / f"sensitivity_{case.name}.json").write_text(json.dumps(written, indent=1) + "\n")


def _numbers(values: NDArray[np.float64], form: str = ".3f") -> str:
    listed = " ".join(format(float(value), form) for value in values)
    return f"{listed} (mean {format(float(np.exp(np.log(values).mean())), form)})"


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[[], *(case.name for case in CASES)])
    parser.add_argument("--tune", action="store_true", help="plans after learned rounding too")
    parser.add_argument("--hessian", action="store_true", help="--sensitivity hessian too (minutes)")
    asked = parser.parse_args()
    for case in CASES:
        if not asked.models or case.name in asked.models:
            run(case, tune=asked.tune, hessian=asked.hessian)


if __name__ == "__main__":
    main()
