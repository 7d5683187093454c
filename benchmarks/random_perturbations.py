"""Whether the formula holds for random perturbations: noise of the same squared size as rounding's, weight by weight.

    python benchmarks/random_perturbations.py MODEL --data DATA [--bits 4] [--draws 16] [--json FILE]

Each weight alone gets Gaussian noise whose mean square is that of its rounding error; the loss that this causes, in the
mean over draws, is put beside mean-trace(H) ||Q(W) - W||^2 / 2 (HAWQ-V2, lemma 1, whose assumption such noise meets and
rounding may not), and beside what rounding itself causes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from amq_onnx.calibration import tensors
from amq_onnx.executor.interpreter import Executor
from amq_onnx.head_losses import losses_on
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import open_data
from amq_onnx.model.file import read_model
from amq_onnx.model.heads import find_heads
from amq_onnx.plan import Plan
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.rewriting import prepare

_BATCH = 64


def main() -> None:
    """Print a row a weight, and the correlations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    proto = read_model(arguments.model)
    prepared = prepare(proto)
    data = open_data(arguments.data, proto, arguments.samples)
    # Without bias correction: noise has no mean to be corrected.
    options = SensitivityOptions(method="gauss-newton", samples=arguments.samples, correct_biases=False)
    table = measure_sensitivity(prepared, data, [arguments.bits], None, options)
    widths = dict.fromkeys(table.weights, arguments.bits)
    plan = Plan(table.model, "curvature", widths, {}, scales=table.scales)
    encodings = plan.encodings(prepared)
    executor = Executor(prepared.model)
    heads, _ = find_heads(prepared.model)
    losses = losses_on(executor, data, heads)
    names = [head.tensor for head in heads]

    def divergence(changes: dict[str, torch.Tensor]) -> float:
        total = 0.0
        with torch.inference_mode():
            for batch in data.batches(_BATCH):
                feeds = tensors(batch, executor)
                expected = executor.run(feeds, names)
                found = executor.run({**feeds, **changes}, names)
                for loss, name in zip(losses, names, strict=True):
                    total += float(loss.divergence(expected[name], found[name]).double().sum())
        return total / data.samples()

    generator = torch.Generator().manual_seed(0)
    rows = {}
    for name, row in table.weights.items():
        weight = executor.initializers[name].detach()
        rounded = torch.from_numpy(round_trip(prepared.weight(name), encodings[name]))
        size = float((rounded - weight).norm())
        noise = [torch.randn(weight.shape, generator=generator) for _ in range(arguments.draws)]
        drawn = [divergence({name: weight + size * each / weight.numel() ** 0.5}) for each in noise]
        rows[name] = {
            "predicted": row.omega(arguments.bits) / 2,
            "random": float(np.mean(drawn)),
            "error": float(np.std(drawn, ddof=1) / len(drawn) ** 0.5),
            "rounded": divergence({name: rounded}),
        }
        print(f"{name:40s} " + "  ".join(f"{key} {value:.3g}" for key, value in rows[name].items()), flush=True)
    values = {key: np.array([row[key] for row in rows.values()]) for key in ("predicted", "random", "rounded")}
    summary = {}
    for key in ("random", "rounded"):
        ratios = values[key] / values["predicted"]
        spearman = np.corrcoef(*(np.argsort(np.argsort(values[each])) for each in ("predicted", key)))[0, 1]
        summary[key] = {"median_ratio": float(np.median(ratios)), "spearman": float(spearman)}
        print(f"{key}: median of measured over predicted {np.median(ratios):.2f}, Spearman {spearman:.3f}")
    if arguments.json is not None:
        found = {"bits": arguments.bits, "draws": arguments.draws, "summary": summary, "weights": rows}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
