"""What is said of a result: per layer, before and after, and the same as plain data."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amq_onnx.cli import console
from amq_onnx.formats import mix
from amq_onnx.model.file import write_text
from amq_onnx.quantizer.encoding import Widths
from amq_onnx.result import Result
from amq_onnx.result_tables import (
    before_and_after,
    blocks_table,
    epochs_table,
    frontier_line,
    left_in_float,
    output_errors,
    predictions_line,
    verification_table,
)
from amq_onnx.runtime.verification import Verification
from amq_onnx.sensitivity import ActivationRow, Sensitivity, WeightRow
from amq_onnx.size_search import Trial
from amq_onnx.tuning.rounding import Tuned

# Learned codes should have reached whole numbers before they are made whole.
_SETTLED = 0.99


def print_sensitivity(sensitivity: Sensitivity) -> None:
    """The scores of all sites at each width, and the traces that they come from where they do."""
    for title, rows in (("weights", sensitivity.weights), ("activations", sensitivity.activations)):
        if not rows:
            continue
        widths = sorted({bits for row in rows.values() for bits in row.widths()})
        console.table(
            f"sensitivity of {title}",
            [title, "elements", *_trace_titles(sensitivity), *(f"Ω {bits} bits" for bits in widths)],
            [
                [
                    name,
                    console.count(row.elements),
                    *_trace_cells(row),
                    *(_omega(row, bits) if bits in row.widths() else "" for bits in widths),
                ]
                for name, row in rows.items()
            ],
        )
    print_measurement(sensitivity)


def _trace_titles(sensitivity: Sensitivity) -> list[str]:
    """Columns of a trace, where one was taken."""
    rows: list[WeightRow | ActivationRow] = [*sensitivity.weights.values(), *sensitivity.activations.values()]
    return ["mean trace", "± error"] if any(row.trace is not None for row in rows) else []


def _trace_cells(row: WeightRow | ActivationRow) -> list[str]:
    if row.trace is None or row.trace_error is None:
        return []
    relative = console.percent(row.trace_error / abs(row.trace)) if row.trace else "-"
    return [console.real(row.trace / row.elements), relative]


def _omega(row: WeightRow | ActivationRow, bits: Widths) -> str:
    """A score, with its standard error where it has one."""
    if not isinstance(bits, int):  # only weights have widths by channel
        return console.real(row.omega(bits)) if isinstance(row, WeightRow) else ""
    score = row.omega(bits)
    if bits not in row.loss or not score:
        return console.real(score)
    value, error = row.loss[bits]
    return f"{console.real(score)} ± {console.percent(error / value)}"


def print_measurement(sensitivity: Sensitivity) -> None:
    """How the sensitivity came about, and what of it should give pause."""
    for tensor, loss in sensitivity.loss.items():
        console.line(f"loss on '{tensor}': {loss}")
    console.line(
        f"sensitivity: {sensitivity.method}, {sensitivity.samples} samples, {sensitivity.probes} probes each, "
        f"seed {sensitivity.seed}"
    )
    if not sensitivity.converged:
        console.note("some traces are less certain than asked (see ± error): raise --max-probes")
    negative = sensitivity.negative_traces()
    if negative:
        console.note(
            f"{len(negative)} traces are negative (the model isn't at a minimum of this loss): their absolute "
            f"value was used: {', '.join(negative[:5])}"
        )


def print_result(result: Result) -> None:
    """The two tables of a quantization, and what is known besides."""
    print_layers(result)
    if result.sensitivity.left_float:
        console.show(left_in_float(result))
    console.show(before_and_after(result))
    if result.verification is not None:
        _print_notes(result.verification)
    if result.tuned is not None:
        print_tuning(result.tuned)
    if result.trials:
        console.line(f"searched {len(result.trials)} files: {', '.join(_trial(trial) for trial in result.trials)}")
    if result.frontier:
        console.line(frontier_line(result))
    if result.measured is not None:
        console.line(predictions_line(result, result.measured))
    console.line(f"runs on onnxruntime {result.oldest_runtime} and newer")


def print_tuning(tuned: Tuned) -> None:
    """A row a block, and a row an epoch where the whole graph was trained."""
    console.show(blocks_table(tuned))
    if any(block.settled < _SETTLED for block in tuned.blocks):
        console.note("some codes were still between two whole numbers when they were rounded: raise --tune-steps")
    if tuned.aligned:
        console.line(f"{tuned.aligned} activations have one scale with the sums they are in, which round no more")
    if tuned.epochs:
        console.show(epochs_table(tuned))


def _trial(trial: Trial) -> str:
    return f"{console.count(trial.bytes)} bytes fell by {trial.drop:.4f}"


def print_layers(result: Result) -> None:
    """A row a site: width, trace with its error, share of the predicted loss."""
    sensitivity, plan = result.sensitivity, result.plan
    console.table(
        "weights",
        ["layer", "elements", "bits", *_trace_titles(sensitivity), "Ω", "share of Ω"],
        [
            [
                name,
                console.count(row.elements),
                mix(bits),
                *_trace_cells(row),
                _omega(row, bits),
                console.percent(result.shares.get(name, 0.0)),
            ]
            for name, bits in plan.weights.items()
            for row in [sensitivity.weights[name]]
        ],
    )
    if len({site.bits for site in plan.activations.values()}) > 1:
        console.table(
            "activations",
            ["tensor", "elements", "bits", *_trace_titles(sensitivity), "share of Ω"],
            [
                [
                    name,
                    console.count(row.elements),
                    str(site.bits),
                    *_trace_cells(row),
                    console.percent(result.shares.get(name, 0.0)),
                ]
                for name, site in plan.activations.items()
                for row in [sensitivity.activations[name]]
            ],
        )
    elif plan.activations:
        bits = next(iter(plan.activations.values())).bits
        share = sum(result.shares.get(name, 0.0) for name in plan.activations)
        console.line(f"activations: {len(plan.activations)} tensors at {bits} bits, {console.percent(share)} of Ω")
    print_measurement(sensitivity)


def print_verification(verification: Verification) -> None:
    """Scores, errors of the outputs, bytes and latency."""
    console.show(verification_table(verification))
    console.show(output_errors(verification))
    _print_notes(verification)


def _print_notes(verification: Verification) -> None:
    for remark in verification.notes:
        console.note(remark)


def result_data(result: Result) -> dict[str, Any]:
    """A result as plain data for JSON."""
    plan, sensitivity = result.plan, result.sensitivity
    return {
        "bytes": result.bytes,
        "float_bytes": result.float_bytes,
        "budget_bytes": result.budget,
        "tuned": None
        if result.tuned is None
        else {
            "samples": result.tuned.samples,
            "aligned": result.tuned.aligned,
            "blocks": [asdict(block) for block in result.tuned.blocks],
            "epochs": [asdict(epoch) for epoch in result.tuned.epochs],
        },
        "trials": [asdict(trial) for trial in result.trials],
        "predicted_bytes": result.predicted_bytes,
        "mean_weight_bits": sensitivity.mean_bits(plan.weights),
        "weight_widths": dict(sorted(Counter(bits for bits in plan.weights.values() if isinstance(bits, int)).items())),
        "mixed_weights": sum(not isinstance(bits, int) for bits in plan.weights.values()),
        "perturbation": result.perturbation,
        "shares": result.shares,
        "weights": plan.weights,
        "activations": {name: site.bits for name, site in plan.activations.items()},
        "left_float": sensitivity.left_float,
        "loss": sensitivity.loss,
        "curvature": {
            "method": sensitivity.method,
            "samples": sensitivity.samples,
            "probes": sensitivity.probes,
            "converged": sensitivity.converged,
            "negative_traces": sensitivity.negative_traces(),
        },
        "oldest_onnxruntime": result.oldest_runtime,
        "verification": None if result.verification is None else result.verification.to_dict(),
    }


def write_json(path: Path | None, data: object) -> None:
    """Write `data` to `path`, if one is named; infinities become null, which JSON can hold."""
    if path is None:
        return
    import json

    write_text(path, json.dumps(_finite(data), indent=1) + "\n")


def _finite(data: object) -> object:
    if isinstance(data, dict):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    if isinstance(data, float) and data not in (float("inf"), float("-inf")) and data == data:
        return data
    return None if isinstance(data, float) else data
