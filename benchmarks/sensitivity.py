"""How well each way to measure sensitivity predicts what a width costs, and what plans follow from it.

    AMQ_DATA=... python benchmarks/sensitivity.py [resnet20 transformer magika mobilenetv2] [--seeds 4] [--tune]
        [--hessian]

For every method, over some seeds: Spearman's rank correlation of its score with the measured loss of one quantized site
on held-out data (Kullback-Leibler divergence; every site at 2, 3, 4 and 8 bits, then all widths together), weights and
activations; regret, the held-out loss of its plan over that of the best plan that any method found for the size with
the same seed: the geometric mean over sizes and seeds, the largest, and their standard errors, paired by held-out
sample; in brackets the mean beside the best plan of all seeds; the mean beside plans that are best on other held-out
samples than they are compared on, so that luck is no part of it (`regrets.py`); the processor's seconds
(which other programs beside it change little) beyond ranges and scales, the same as whole forward passes of one sample,
and over brute force.

All plans get the ranges of activations that the first table has, so that only widths differ: ranges of another seed
move the loss of one and the same plan by 2 to 10 % on ResNet20. Brute force is a whole pass of 64 inputs, others with
each seed, for every site and width; its seconds are those of one such pass times the entries. `additive truth` is the
plan of the held-out losses themselves: what a sum of losses of single sites can reach, and no measurement can know.
Held-out data are never calibrated on. With --tune, the first seed's plans after learned rounding too. Rows go to
out/sensitivity_MODEL.json, held-out losses to out/sensitivity_MODEL.npz, to be used again.

MobileNetV2, whose passes are long, is measured only where it's named, best with --seeds 1: our methods see 64 samples,
and the held-out losses, of 24 images, are all the brute force there is.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from regrets import Losses, best_plans, geometric_mean, mean_regret_beside_unseen, regret
from scipy.stats import spearmanr
from sensitivity_cases import BRUTE_INPUTS, CASES, Case

import amq_onnx
from amq_onnx.calibration import tensors
from amq_onnx.compiler import Compiler
from amq_onnx.executor.interpreter import Executor
from amq_onnx.head_losses import losses_for
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import Method, SensitivityOptions
from amq_onnx.model.data import Dataset, open_data
from amq_onnx.model.file import file_bytes, read_model
from amq_onnx.model.heads import find_heads
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.encoding import Widths
from amq_onnx.quantizer.weight_ranges import encoding_at
from amq_onnx.rewriting import prepare
from amq_onnx.sensitivity import Sensitivity
from amq_onnx.site_losses import measure_losses
from amq_onnx.site_perturbations import perturbations

_OUT = Path("out")
WIDTHS = (2, 3, 4, 8)
WEIGHT_BITS = tuple(range(2, 9))
TRUTH = "additive truth"
_COMMON = ("ranges of activations", "scales of weights", "curvature of ranges")
_HESSIAN = SensitivityOptions(method="hessian", samples=32, max_probes=4)


class Stopwatch:
    """The processor's seconds since what all methods share was done, told by the progress of a measurement."""

    def __init__(self) -> None:
        self.shared = time.process_time()

    def __call__(self, step: str, done: int, of: int | None) -> None:
        """See Progress."""
        if step in _COMMON:
            self.shared = time.process_time()

    def seconds(self) -> float:
        """Seconds so far."""
        return time.process_time() - self.shared


@dataclass
class Row:
    """A method with one seed. plans: held-out loss of its plan at each size, by sample; tuned: its mean."""

    name: str
    seed: int
    table: Sensitivity
    seconds: float
    plans: list[Losses] = field(default_factory=list)
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
        self.for_plans = open_data(case.held_out, self.prepared.model, case.plan_samples)
        self.heads, _ = find_heads(self.prepared.model)
        self.known: dict[tuple[bool, tuple[Widths, ...]], Losses] = {}

    def measured(self, options: SensitivityOptions, data: Dataset | None = None) -> tuple[Sensitivity, float]:
        """The table of the asked method and its seconds."""
        watch = Stopwatch()
        table = measure_sensitivity(self.prepared, data or self.calibration, WEIGHT_BITS, WIDTHS, options, watch)
        return table, watch.seconds()

    def losses(self, table: Sensitivity, data: Dataset) -> Sensitivity:
        """`table` with the losses measured on `data`, all samples alike."""
        weights = {
            site.name: {
                bits: round_trip(
                    self.prepared.weight(site.name),
                    encoding_at(self.prepared.weight(site.name), site.axis, bits, known=table.scales.get(site.name)),
                )
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

    @cached_property
    def pass_seconds(self) -> float:
        """The processor's seconds of a whole pass of one input, in batches."""
        batches = [tensors(batch, self.executor) for batch in self.calibration.first(64).batches(self._batch())]
        names = [head.tensor for head in self.heads]
        runs = []
        with torch.inference_mode():
            for _ in range(4):
                start = time.process_time()
                for batch in batches:
                    self.executor.run(batch, names)
                runs.append(time.process_time() - start)
        return statistics.median(runs[1:]) / 64

    def brute_force(self, table: Sensitivity, seed: int) -> Sensitivity:
        """`table` with losses measured on so many of the calibration inputs, drawn by `seed`."""
        count = self.calibration.samples()
        chosen = np.random.default_rng(seed).permutation(count)[: self.case.inputs]
        return self.losses(table, self.calibration.chosen(sorted(chosen.tolist())))

    @cached_property
    def brute_force_seconds(self) -> float:
        """Seconds of whole passes of 64 inputs, one for every site and width."""
        sites = self.prepared.sites
        return (
            self.pass_seconds
            * BRUTE_INPUTS
            * (len(WEIGHT_BITS) * len(sites.weights) + len(WIDTHS) * len(sites.activations))
        )

    def plan_losses(self, table: Sensitivity, ranges: Sensitivity, *, tune: bool) -> list[Losses]:
        """Held-out losses of the table's plan at each size, [samples], with the ranges of another table."""
        rows = {name: replace(row, ranges=ranges.activations[name].ranges) for name, row in table.activations.items()}
        table = replace(table, activations=rows, expected_inputs=ranges.expected_inputs)
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

    def divergence(self, model: onnx.ModelProto) -> Losses:
        """Losses of a quantized file against the float model on held-out data, [samples]."""
        quantized, float_outputs = Executor(model), [head.output for head in self.heads]
        heads, _ = find_heads(model)
        names = [head.tensor for head in heads]
        assert [head.output for head in heads] == float_outputs
        losses = losses_for(self.heads, self._mean_squares(self.for_plans, self.case.plan_samples))
        found = []
        with torch.inference_mode():
            for batch, exact in zip(self.for_plans.batches(self._batch()), self._float_scores, strict=True):
                ours = quantized.run(tensors(batch, self.executor), names)
                parts = [
                    loss.divergence(before.double(), ours[name].double())
                    for before, name, loss in zip(exact, names, losses, strict=True)
                ]
                found.append(torch.stack(parts).sum(0).numpy())
        return np.concatenate(found)

    @cached_property
    def _float_scores(self) -> list[list[torch.Tensor]]:
        """By batch of the data for plans, the float model's scores."""
        names = [head.tensor for head in self.heads]
        with torch.inference_mode():
            found = [
                self.executor.run(tensors(batch, self.executor), names)
                for batch in self.for_plans.batches(self._batch())
            ]
        return [[scores[name] for name in names] for scores in found]

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


def measure(bench: Bench, *, seeds: int, tune: bool, hessian: bool) -> list[Row]:
    """All tables: ours and brute force with every seed, and the held-out losses themselves, which come last.

    tune: that of learned rounding as well.
    """
    rows: list[Row] = []
    methods: tuple[Method, ...] = ("gauss-newton", "quadratic", "hybrid")
    for seed in range(seeds):
        for method in methods:
            rows.append(Row(method, seed, *bench.measured(replace(bench.case.options, method=method, seed=seed))))
            print(f"{bench.case.name}: {method} measured, {rows[-1].seconds:.1f} s", flush=True)
        if bench.case.inputs:
            name = f"brute force, {bench.case.inputs} inputs"
            rows.append(Row(name, seed, bench.brute_force(rows[0].table, seed), bench.brute_force_seconds))
            print(f"{bench.case.name}: {name} measured", flush=True)
    if tune:
        rows.append(Row("hybrid, learned", 0, *bench.measured(replace(bench.case.options, rounding="learned"))))
    if hessian and bench.case.labelled is not None:
        data = open_data(bench.case.labelled, bench.prepared.model)
        rows.append(Row("hessian, 32 samples", 0, *bench.measured(_HESSIAN, data)))
    rows.append(Row(TRUTH, 0, bench.truth(rows[0].table), float("nan")))
    return rows


def run(case: Case, *, seeds: int, tune: bool, hessian: bool) -> None:
    """Print and write the rows of one model."""
    bench = Bench(case)
    rows = measure(bench, seeds=seeds, tune=tune, hessian=hessian)
    truth = rows[-1].table
    for row in rows:
        row.plans = bench.plan_losses(row.table, rows[0].table, tune=False)
        first = next(other for other in rows if other.name == row.name) is row
        if tune and first and row.name != TRUTH:
            row.tuned = [float(loss.mean()) for loss in bench.plan_losses(row.table, rows[0].table, tune=True)]
            print(f"{case.name}: plans of {row.name} tuned", flush=True)
    methods = list(dict.fromkeys(row.name for row in rows))
    rivals = [[row.plans for row in rows if row.seed == seed and row.name != TRUTH] for seed in range(seeds)]
    best = [best_plans(of_seed) for of_seed in rivals]
    best_of_all = best_plans(plans for of_seed in rivals for plans in of_seed)
    best_tuned = np.min([row.tuned for row in rows if row.tuned], 0) if tune else None
    least = " ".join(f"{losses.mean():.2e}" for losses in best_of_all)
    print(f"\n{case.name}: sizes {', '.join(map(str, case.sizes))}, best plans' losses {least}; {seeds} seeds")
    written = []
    for name in methods:
        of_method = [row for row in rows if row.name == name]
        correlations = [ranks(row.table, truth) for row in of_method]
        found = np.array([regret(row.plans, best[row.seed]) for row in of_method])  # [seeds, 2, sizes]
        beside_all = geometric_mean(np.array([regret(row.plans, best_of_all)[0] for row in of_method]))
        ratios, errors = found[:, 0], found[:, 1]
        unseen = mean_regret_beside_unseen([row.plans for row in of_method], [rivals[row.seed] for row in of_method])
        worst = np.unravel_index(ratios.argmax(), ratios.shape)
        seconds = statistics.mean(row.seconds for row in of_method)
        line: dict[str, Any] = {
            "method": name,
            "seconds": seconds,
            "passes": seconds / bench.pass_seconds,
            "of_brute_force": seconds / bench.brute_force_seconds,
            "rank": {key: statistics.mean(found[key] for found in correlations) for key in correlations[0]},
            "loss": [[float(loss.mean()) for loss in row.plans] for row in of_method],
            "regret": ratios.tolist(),
            "regret_error": errors.tolist(),
            "mean_regret": geometric_mean(ratios),
            "mean_regret_of_all": beside_all,
            "mean_regret_beside_unseen": unseen,
            "worst_regret": float(ratios.max()),
        }
        text = f"{name:24s} rank {' '.join(f'{key} {value:.3f}' for key, value in line['rank'].items())}\n"
        text += f"{'':24s} regret mean {geometric_mean(ratios):.3f} ({beside_all:.3f}), "
        text += f"beside unseen {unseen[0]:.3f} ± {unseen[1]:.3f}, worst {ratios[worst]:.3f} "
        text += f"± {errors[worst]:.3f}, by size "
        text += " ".join(
            f"{geometric_mean(ratios[:, size]):.3f} ± {errors[:, size].mean():.3f}" for size in range(len(case.sizes))
        )
        if best_tuned is not None and of_method[0].tuned:
            line |= {"tuned_loss": of_method[0].tuned, "tuned_regret": (of_method[0].tuned / best_tuned).tolist()}
            listed = " ".join(f"{value:.3f}" for value in line["tuned_regret"])
            mean = geometric_mean(np.array(line["tuned_regret"]))
            text += f"\n{'':24s} tuned, first seed: {listed} (mean {mean:.3f})"
        if name != TRUTH:
            text += (
                f"\n{'':24s} {seconds:.2f} s, {line['passes']:.0f} passes, {line['of_brute_force']:.2f} of brute force"
            )
        print(text, flush=True)
        written.append(line)
    _OUT.mkdir(exist_ok=True)
    (_OUT / f"sensitivity_{case.name}.json").write_text(json.dumps(written, indent=1) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[[], *(case.name for case in CASES)])
    parser.add_argument("--tune", action="store_true", help="plans after learned rounding too")
    parser.add_argument("--hessian", action="store_true", help="--sensitivity hessian too (minutes)")
    parser.add_argument("--seeds", type=int, default=4, metavar="N", help="of every method (default: %(default)s)")
    asked = parser.parse_args()
    for case in CASES:
        if case.name in asked.models or (not asked.models and case.by_default):
            run(case, seeds=asked.seeds, tune=asked.tune, hessian=asked.hessian)


if __name__ == "__main__":
    main()
