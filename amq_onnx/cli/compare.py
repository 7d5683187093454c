"""amq compare: rival ways to choose widths, at the same size and with the same tuning."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, cast

from amq_onnx.cli import console, options, tuning_options
from amq_onnx.cli.summary import write_json
from amq_onnx.comparison import STRATEGIES, ComparisonTable, Strategy, compare
from amq_onnx.errors import UsageError
from amq_onnx.formats import count, percent, real
from amq_onnx.model.data import Dataset, open_data
from amq_onnx.model.file import read_model, write_text
from amq_onnx.report.figures_page import Section, figures_page
from amq_onnx.report.plotting import require_plotly
from amq_onnx.report.rival_figures import Setting, settings_figure
from amq_onnx.result_tables import Table
from amq_onnx.runtime.session import PROVIDERS, silence_runtime
from amq_onnx.runtime.verification import Comparison, check_gate
from amq_onnx.strategies.haq import AgentOptions

# Settings that are drawn at random, and sizes of the frontier.
_SETTINGS = 1000
_DEFAULT = ",".join(name for name in STRATEGIES if name != "haq")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    parser.add_argument(
        "--size", default="", metavar="4MB|300KB|0.2|20%", help="bound on every file, or several: 0.1,0.2"
    )
    parser.add_argument(
        "--uniform-bits",
        type=options.widths,
        default=(),
        metavar="4|2-4",
        help="the size of the file with all weights at so many bits",
    )
    parser.add_argument(
        "--strategies", default=_DEFAULT, metavar="A,B", help=f"of {', '.join(STRATEGIES)} (default: all but haq)"
    )
    options.add_data(parser, "calibration inputs")
    parser.add_argument("--eval", metavar="DATA", help="data to verify on (default: the calibration data)")
    options.add_widths(parser)
    options.add_graph(parser)
    options.add_measurement(parser)
    tuning_options.add_options(parser)
    default = AgentOptions()
    parser.add_argument(
        "--episodes",
        type=int,
        default=default.episodes,
        metavar="N",
        help="plans that haq tries (default: %(default)s)",
    )
    parser.add_argument(
        "--episode-epochs",
        type=int,
        default=default.epochs,
        metavar="N",
        help="passes over the data that haq trains each plan for before it's scored (default: %(default)s)",
    )
    parser.add_argument("--metric", help="top1, top5, agreement, cosine, sqnr or script.py:function")
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cpu", help="execution provider to verify on")
    parser.add_argument("--output", "-o", type=Path, metavar="FOLDER", help="keep the files there")
    parser.add_argument("--plot", type=Path, metavar="FILE.html", help="draw all among settings drawn at random")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "json", "plot")
    if arguments.plot is not None:
        require_plotly("--plot")
    if arguments.output is not None and not arguments.output.is_dir():
        raise UsageError(f"-o '{arguments.output}' is no folder: make it first")
    if arguments.granularity != "layer":
        raise UsageError("--granularity channel is not for comparisons: the rivals choose a width a layer")
    if arguments.sensitivity is not None:
        raise UsageError("--sensitivity has no meaning here: name the strategies with --strategies")
    for option in ("equalize", "quantize_outputs"):
        if getattr(arguments, option):
            raise UsageError(f"--{option.replace('_', '-')} is not for comparisons")
    if arguments.episodes < 1:
        raise UsageError("--episodes must be 1 or more")
    if arguments.episode_epochs < 0:
        raise UsageError("--episode-epochs must be 0 or more")
    check_gate(arguments.metric, None)
    bits, activation_bits = options.checked_widths(arguments)
    measurement = options.measurement(arguments)
    model = read_model(arguments.model)
    data = options.opened(arguments, model)
    evaluation = None if arguments.eval is None else open_data(arguments.eval, model)
    tuning = tuning_options.tuning(arguments, model)
    del model  # of a large one, much of the memory
    assert isinstance(data, Dataset)
    silence_runtime()
    with console.progress() as progress:
        table = compare(
            arguments.model,
            data,
            sizes=[size.strip() for size in arguments.size.split(",") if size.strip()],
            uniform_bits=arguments.uniform_bits,
            strategies=cast("list[Strategy]", [name.strip() for name in arguments.strategies.split(",")]),
            bits=bits,
            activation_bits=activation_bits,
            activation_average=arguments.activation_average,
            exclude=arguments.exclude,
            target=arguments.target,
            opset=arguments.opset,
            options=measurement,
            tune="none" if tuning.method is None else tuning,
            agent=AgentOptions(arguments.episodes, epochs=arguments.episode_epochs, seed=arguments.seed),
            evaluation=evaluation,
            metric=arguments.metric,
            provider=arguments.provider,
            output=arguments.output,
            settings=0 if arguments.plot is None else _SETTINGS,
            progress=progress,
        )
    write_json(arguments.json, comparison_data(table))
    if arguments.plot is not None:
        write_text(arguments.plot, _page(arguments.model.name, table))
    for shown in _tables(table):
        console.show(shown)


def _tables(table: ComparisonTable) -> list[Table]:
    """A table a budget."""
    found = []
    for budget in dict.fromkeys(row.budget for row in table.rows):
        rows = [row for row in table.rows if row.budget == budget]
        first = rows[0].comparison
        found.append(
            Table(
                f"strategies at {count(budget)} bytes ({percent(budget / table.float_bytes)} of the float file), "
                f"{first.samples} samples, float {first.metric} {first.float_score:.4f}",
                ["strategy", "bytes", "bits", first.metric, "drop (95 % interval)", "KL", "Ω by traces", "search, s"],
                [
                    [
                        row.strategy,
                        count(row.bytes),
                        f"{table.traces.mean_bits(row.plan.weights):.2f}",
                        f"{row.comparison.quantized_score:.4f}",
                        _drop(row.comparison),
                        _divergence(row.comparison),
                        real(row.perturbation),
                        f"{row.search.clock:.1f}" + (f" ({row.files} files)" if row.files else ""),
                    ]
                    for row in rows
                ],
            )
        )
    return found


def _page(model: str, table: ComparisonTable) -> str:
    first = table.rows[0].comparison
    rivals = [
        Setting(
            row.bytes,
            row.perturbation,
            row.strategy,
            f"{first.metric} {row.comparison.quantized_score:.4f}, drop {_drop(row.comparison)}",
        )
        for row in table.rows
    ]
    drawn, frontier = ([Setting(*point) for point in points] for points in (table.sampled, table.frontier))
    note = (
        f"ΣΩ is the sum of mean-trace(H) ‖Q(W) − W‖² over all sites. {len(drawn)} settings drawn at random, "
        f"{len(frontier)} plans on the frontier; a mark is the file of a strategy."
    )
    section = Section("all settings and the frontier", note, settings_figure(drawn, frontier, rivals))
    said = f"Strategies side by side, on {first.samples} samples; float {first.metric} {first.float_score:.4f}."
    return figures_page(model, said, [section], _tables(table))


def _drop(found: Comparison) -> str:
    interval = found.drop_interval
    return f"{found.drop:.4f}" if interval is None else f"{found.drop:.4f} ({interval[0]:.4f} to {interval[1]:.4f})"


def _divergence(found: Comparison) -> str:
    known = [error.divergence for error in found.outputs.values() if error.divergence is not None]
    return real(sum(known)) if known else ""


def comparison_data(table: ComparisonTable) -> dict[str, Any]:
    """A comparison as plain data for JSON."""
    return {
        "float_bytes": table.float_bytes,
        "rows": [
            {
                "strategy": row.strategy,
                "budget_bytes": row.budget,
                "bytes": row.bytes,
                "mean_weight_bits": table.traces.mean_bits(row.plan.weights),
                "metric": row.comparison.metric,
                "samples": row.comparison.samples,
                "float_score": row.comparison.float_score,
                "score": row.comparison.quantized_score,
                "drop": row.comparison.drop,
                "drop_interval": row.comparison.drop_interval,
                "divergence": {name: error.divergence for name, error in row.comparison.outputs.items()},
                "sqnr": {name: error.sqnr for name, error in row.comparison.outputs.items()},
                "perturbation": row.perturbation,
                "seconds": row.search.clock,
                "processor_seconds": row.search.processor,
                "files": row.files,
                "file_seconds": row.file_search.clock,
                "file_processor_seconds": row.file_search.processor,
                "weights": row.plan.weights,
                "activations": {name: site.bits for name, site in row.plan.activations.items()},
            }
            for row in table.rows
        ],
    }
