"""The tables of a result, as text in cells: the terminal prints them and the report shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amq_onnx.formats import count, percent, real
from amq_onnx.result import Result
from amq_onnx.runtime.verification import Verification
from amq_onnx.site_losses import SiteLosses
from amq_onnx.tuning.rounding import Tuned

# A prediction is as good as others within this factor of what was measured.
_NEAR = 2.0


@dataclass(frozen=True)
class Table:
    """A title, a head and rows of cells; the first `text_columns` are text, the others numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


def before_and_after(result: Result) -> Table:
    """Bytes, widths, score and latency of both files."""
    bits = result.sensitivity.mean_bits(result.plan.weights)
    rows = [
        ["bytes", count(result.float_bytes), count(result.bytes)],
        ["share of the float file", "100 %", percent(result.bytes / result.float_bytes)],
        *([["share of the budget", "", percent(result.bytes / result.budget)]] if result.budget else []),
        ["mean bits of a weight", f"{result.float_bits:.4g}", f"{bits:.2f}"],
    ]
    if result.verification is not None:
        rows += _scores(result.verification)
    return Table("before and after", ["", "float", "quantized"], rows)


def verification_table(verification: Verification) -> Table:
    """Bytes, score and latency of two files."""
    rows = [
        ["bytes", count(verification.float_bytes), count(verification.quantized_bytes)],
        *_scores(verification),
    ]
    return Table("verification", ["", "float", "quantized"], rows)


def _scores(verification: Verification) -> list[list[str]]:
    latency = verification.latency
    return [
        [
            f"{verification.metric} ({verification.samples} samples)",
            f"{verification.float_score:.4f}",
            f"{verification.quantized_score:.4f}",
        ],
        [f"drop of {verification.metric} (95 % interval)", "", _drop(verification)],
        [
            f"median latency, ms ({verification.provider}, {latency.runs} runs in turns)",
            f"{1e3 * latency.first:.3f}",
            f"{1e3 * latency.second:.3f} ({latency.ratio:.2f} of float)",
        ],
    ]


def _drop(verification: Verification) -> str:
    interval = verification.drop_interval
    ends = "none: no mean over samples" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"
    return f"{verification.drop:.4f} ({ends})"


def output_errors(verification: Verification) -> Table:
    """How far each output is from the float model's."""
    return Table(
        "errors of the outputs",
        ["output", "largest", "mean", "SQNR dB", "KL"],
        [
            [
                name,
                real(error.largest),
                real(error.mean),
                f"{error.sqnr:.1f}",
                "" if error.divergence is None else real(error.divergence),
            ]
            for name, error in verification.outputs.items()
        ],
    )


def left_in_float(result: Result) -> Table:
    """What was not quantized, and why."""
    left = result.sensitivity.left_float
    return Table("left in float", ["tensor", "reason"], [[name, why] for name, why in left.items()], text_columns=2)


def blocks_table(tuned: Tuned) -> Table:
    """A row a block whose rounding was learned."""
    return Table(
        f"learned rounding ({tuned.samples} samples)",
        ["block", "weights", "loss, nearest", "loss, learned", "settled", "changed"],
        [
            [
                ", ".join(block.outputs),
                str(len(block.weights)),
                real(block.nearest),
                real(block.learned),
                percent(block.settled),
                percent(block.changed),
            ]
            for block in tuned.blocks
        ],
    )


def epochs_table(tuned: Tuned) -> Table:
    """A row an epoch of training the whole graph."""
    labelled = any(epoch.accuracy is not None for epoch in tuned.epochs)
    return Table(
        "fine-tuning",
        ["epoch", "loss", "agreement held out", "divergence held out", *["accuracy held out"] * labelled, ""],
        [
            [
                str(number) if number else "start",
                real(epoch.loss) if number else "",
                _share(epoch.agreement),
                real(epoch.divergence),
                *[_share(epoch.accuracy)] * labelled,
                "best so far" if epoch.kept else "",
            ]
            for number, epoch in enumerate(tuned.epochs)
        ],
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def trials_table(result: Result) -> Table:
    """The files that were evaluated in search of the smallest."""
    return Table(
        f"searched {len(result.trials)} files",
        ["bytes", "share of the float file", "drop"],
        [[count(t.bytes), percent(t.bytes / result.float_bytes), f"{t.drop:.4f}"] for t in result.trials],
        text_columns=0,
    )


def frontier_line(result: Result) -> str:
    """The ends of the frontier, in a sentence."""
    first, last = result.frontier[0], result.frontier[-1]
    return (
        f"frontier: {len(result.frontier)} plans, from {count(first.bytes)} bytes (ΣΩ {real(first.perturbation)}) to "
        f"{count(last.bytes)} (ΣΩ {real(last.perturbation)}); this one: {count(result.bytes)} "
        f"(ΣΩ {real(result.perturbation)})"
    )


def predictions(result: Result) -> dict[str, tuple[float, float, float]]:
    """By site that was measured: the predicted loss at its chosen width, the measured one and its standard error.

    The prediction is Ω where that is a loss; of mean traces it is half of Ω, which the quadratic form has in front.
    """
    if result.measured is None:
        return {}
    sensitivity, plan = result.sensitivity, result.plan
    found = {}
    for name, by_bits in result.measured.losses.items():
        ((value, error),) = by_bits.values()
        if name in plan.weights:
            row = sensitivity.weights[name]
            omega, trace = row.omega(plan.weights[name]), row.trace
        else:
            active = sensitivity.activations[name]
            omega, trace = active.omega(plan.activations[name].bits), active.trace
        found[name] = (omega if trace is None else omega / 2, value, error)
    return found


def predictions_line(result: Result, measured: SiteLosses) -> str:
    """How well predictions and what was measured agree, in a sentence."""
    pairs = predictions(result)
    near = sum(_factor(predicted, value) <= _NEAR for predicted, value, _ in pairs.values())
    worst = max(pairs, key=lambda name: _factor(*pairs[name][:2]))
    predicted, value, error = pairs[worst]
    return (
        f"loss of each site alone, measured on {measured.samples} samples: {near} of {len(pairs)} within a factor of "
        f"{_NEAR:g} of the prediction; farthest is '{worst}', {real(predicted)} predicted, {real(value)} ± "
        f"{real(error)} measured"
    )


def _factor(one: float, other: float) -> float:
    """How many times the larger is the smaller; 1 where both are 0."""
    low, high = sorted((one, other))
    return 1.0 if low == high else high / low if low > 0 else float("inf")
