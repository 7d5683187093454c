"""The page: every part in its place, and nothing in it that the browser would have to fetch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Template

from amq_onnx.formats import count, percent, real
from amq_onnx.report.document import document, part, table_html
from amq_onnx.report.figures import bits_figure, frontier_figure, prediction_figure, sensitivity_figure
from amq_onnx.report.frontier_data import frontier_data
from amq_onnx.report.plotting import escaped
from amq_onnx.report.sites import Site, all_sites, decided
from amq_onnx.result import Result
from amq_onnx.result_tables import (
    Table,
    before_and_after,
    blocks_table,
    epochs_table,
    left_in_float,
    output_errors,
    predictions_line,
    trials_table,
)
from amq_onnx.runtime.verification import fall


@dataclass(frozen=True)
class Run:
    """What a report says beside the result.

    model: the float file's name. arguments: those of `amq` that made the result. versions: by package. remarks: what
    should give pause.
    """

    model: str
    arguments: Sequence[str]
    versions: Mapping[str, str]
    remarks: Sequence[str] = ()


def report_page(result: Result, run: Run) -> str:
    """The report as the text of one HTML file: the same text for the same arguments.

    It loads nothing, and runs no script but its own two: a policy in the page names them by their hashes. Needs plotly
    (see `require_plotly`), and a result with `details`; without calibration data it says that no loss was measured.
    """
    sites = all_sites(result)
    shown = decided(sites)
    figures = {
        "frontier": frontier_figure(result),
        "sensitivity": sensitivity_figure(shown),
        "bits": bits_figure(shown),
    }
    if result.measured is not None:
        figures["prediction"] = prediction_figure(result)
    body = Template(part("page.html")).substitute(
        title=escaped(run.model),
        verdict=escaped(_verdict(result)),
        tiles=_tiles(result),
        remarks=_remarks([*run.remarks, *(result.verification.notes if result.verification is not None else [])]),
        frontier=escaped(_frontier_note(result)),
        sensitivity=escaped(_sensitivity_note(result)),
        bits=escaped(_bits_note(result, sites)),
        prediction=_prediction(result),
        tables="\n".join(table_html(table) for table in _tables(result, run)),
        command=" ".join(f"<span>{escaped(word)}</span>" for word in _words(run.arguments)),
    )
    data = {
        "figures": {name: figure.to_plotly_json() for name, figure in figures.items()},
        "plans": frontier_data(result, sites) | {"command": _words(_without_size(run.arguments))},
    }
    return document(f"{run.model}, quantized", body, data, ["drawing.js", "page.js"])


def _verdict(result: Result) -> str:
    """The result in a sentence."""
    share = percent(result.bytes / result.float_bytes)
    said = f"From {count(result.float_bytes)} to {count(result.bytes)} bytes, {share} of the float file"
    found = result.verification
    if found is None:
        return f"{said}; not verified, since there were no data."
    said += f"; {fall(found)} on {count(found.samples)} samples"
    return f"{said}; a run takes {found.latency.ratio:.2f} of the float model's time."


def _tiles(result: Result) -> str:
    tiles = [
        ("size", percent(result.bytes / result.float_bytes), f"{count(result.float_bytes)} → {count(result.bytes)} B")
    ]
    found = result.verification
    if found is not None:
        interval = found.drop_interval
        sure = "" if interval is None else f", 95 % {interval[0]:.4f} to {interval[1]:.4f}"
        tiles.append(
            (
                found.metric,
                f"{found.quantized_score:.4f}",
                f"{found.float_score:.4f} before; fell by {found.drop:.4f}{sure}",
            )
        )
        first, second = 1e3 * found.latency.first, 1e3 * found.latency.second
        tiles.append(("latency", f"{found.latency.ratio:.2f} ×", f"{first:.3f} → {second:.3f} ms, {found.provider}"))
    bits = result.sensitivity.mean_bits(result.plan.weights)
    tiles.append(("bits a weight", f"{bits:.2f}", f"32 before; {len(result.plan.weights)} weights"))
    return "\n".join(
        f"<div class='tile'><h2>{escaped(name)}</h2><strong>{escaped(figure)}</strong><p>{escaped(note)}</p></div>"
        for name, figure, note in tiles
    )


def _remarks(remarks: Sequence[str]) -> str:
    return "\n".join(f"<p class='remark'>{escaped(remark)}</p>" for remark in remarks)


def _frontier_note(result: Result) -> str:
    return f"{len(result.frontier)} plans, each the one of least predicted loss at its size."


def _sensitivity_note(result: Result) -> str:
    table = result.sensitivity
    losses = "; ".join(f"{name}: {loss}" for name, loss in table.loss.items())
    return (
        f"Ω, what a layer at a width alone is expected to add to the loss ({table.method}, {table.samples} samples, "
        f"{table.probes} probes each, seed {table.seed}). Loss on {losses}."
    )


def _bits_note(result: Result, sites: Sequence[Site]) -> str:
    mixed = sum(site.weight and not isinstance(site.widths, int) for site in sites)
    said = f"{len(result.plan.weights)} weights"
    if mixed:
        said += f", {mixed} of them with channels of several widths, shown at their mean"
    active = [site for site in sites if not site.weight]
    if not active:
        return f"{said}; activations stay float."
    if len(decided(list(sites))) == len(sites):
        return f"{said}, then {len(active)} activations."
    share = percent(sum(site.share for site in active))
    return f"{said}; the {len(active)} activations all have {active[0].widths} bits and {share} of ΣΩ."


def _prediction(result: Result) -> str:
    if result.measured is None:
        return "<p>Not measured, since there were no calibration data: give --data.</p>"
    said = predictions_line(result, result.measured)
    traces = ""
    if any(result.sensitivity.weights[name].trace is not None for name in result.plan.weights):
        traces = " Predicted is half of Ω, which mean traces leave the ½ of the quadratic form out of."
    match (result.sensitivity.rounding, result.tuned is not None):
        case ("learned", True):
            rounding = "Weights as learned rounding left them, of which the predictions are."
        case ("learned", False):
            rounding = "Rounded to nearest; the predictions are of learned rounding."
        case (_, True):
            rounding = "Rounded to nearest. Learned rounding comes after that and isn't in it."
        case _:
            rounding = "Rounded to nearest."
    sentence = f"{said[0].upper()}{said[1:]}. {rounding}{traces}"
    return f"<p>{escaped(sentence)}</p>\n<div id='prediction' class='figure'></div>"


def _tables(result: Result, run: Run) -> list[Table]:
    """All tables, in the order of the page."""
    found = [before_and_after(result)]
    if result.verification is not None:
        found.append(output_errors(result.verification))
    if result.trials:
        found.append(trials_table(result))
    if result.tuned is not None:
        found.append(blocks_table(result.tuned))
        if result.tuned.epochs:
            found.append(epochs_table(result.tuned))
    if result.sensitivity.left_float:
        found.append(left_in_float(result))
    rows = [[name, version] for name, version in run.versions.items()]
    rows.append(["the file runs on", f"onnxruntime {result.oldest_runtime} and newer"])
    rows.append(["predicted bytes", count(result.predicted_bytes)])
    rows.append(["ΣΩ of the plan", real(result.perturbation)])
    found.append(Table("made with", ["", ""], rows))
    return found


def _words(arguments: Sequence[str]) -> list[str]:
    """The command's words, as a shell takes them."""
    return ["amq", *(shlex.quote(argument) for argument in arguments)]


def _without_size(arguments: Sequence[str]) -> list[str]:
    """The arguments, for another --size to be written behind them."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != "--size" and not argument.startswith("--size="):
            kept.append(argument)
        skip = argument == "--size"
    return kept
