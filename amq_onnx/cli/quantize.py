"""amq quantize: the whole way."""

from __future__ import annotations

import argparse
from pathlib import Path

from amq_onnx.cli import console, options, tuning_options
from amq_onnx.cli.reporting import write_report
from amq_onnx.cli.summary import print_result, result_data, write_json
from amq_onnx.errors import UsageError
from amq_onnx.model.data import open_data
from amq_onnx.model.file import read_model, write_text
from amq_onnx.pipeline import quantize
from amq_onnx.report import require_plotly
from amq_onnx.result import Result
from amq_onnx.runtime.session import PROVIDERS, silence_runtime
from amq_onnx.runtime.verification import check_gate
from amq_onnx.site_losses import LOSS_METHODS
from amq_onnx.tuning.processes import is_first

_RANDOM = "measured on random inputs: sizes and latency mean something, accuracy doesn't"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="the quantized .onnx file to write")
    parser.add_argument("--size", metavar="4MB|300KB|0.2|20%", help="bound on the written file")
    options.add_data(parser, "calibration inputs")
    parser.add_argument("--eval", metavar="DATA", help="data to verify on (default: the calibration data)")
    options.add_widths(parser)
    options.add_pins(parser)
    options.add_graph(parser)
    options.add_measurement(parser)
    parser.add_argument("--from-sensitivity", type=Path, metavar="FILE", help="use a saved sensitivity table")
    tuning_options.add_options(parser)
    parser.add_argument("--metric", help="top1, top5, agreement, cosine, sqnr or script.py:function")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="D",
        help="how far the metric may fall: without --size, search the smallest file; with it, exit with 1 beyond",
    )
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cpu", help="execution provider to verify on")
    parser.add_argument("--keep-metadata", action="store_true", help="keep the exporter's metadata, at its size")
    parser.add_argument("--dry-run", action="store_true", help="choose and verify, but write no model")
    parser.add_argument("--save-plan", type=Path, metavar="FILE", help="write plan.json")
    parser.add_argument("--save-sensitivity", type=Path, metavar="FILE", help="write sensitivity.json")
    parser.add_argument("--report", type=Path, metavar="FILE.html", help="write all figures and tables as one web page")
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.output is None and not arguments.dry_run:
        raise UsageError("give -o with the file to write, or --dry-run")
    options.require_writable(arguments, "output", "save_plan", "save_sensitivity", "report", "json")
    if arguments.report is not None:
        require_plotly()
    check_gate(arguments.metric, arguments.max_drop)
    if arguments.size is None and arguments.max_drop is None:
        raise UsageError("give --size (4MB, 0.2), or --max-drop for the smallest file that falls no further")
    bits, activation_bits = options.checked_widths(arguments)
    measurement = options.measurement(arguments)
    table = options.loaded_sensitivity(arguments.from_sensitivity)
    model = read_model(arguments.model)
    data = options.opened(arguments, model, required=table is None)
    evaluation = None if arguments.eval is None else open_data(arguments.eval, model)
    tuning = tuning_options.tuning(arguments, model)
    del model  # of a large one, much of the memory
    if arguments.max_drop is not None and data is None and arguments.eval is None:
        raise UsageError("--max-drop needs --data or --eval to verify on")
    silence_runtime()
    with console.progress() as progress:
        result = quantize(
            arguments.model,
            data,
            size=arguments.size,
            # With a size the result is shown before the gate is asked.
            max_drop=arguments.max_drop if arguments.size is None else None,
            output=None if arguments.dry_run or not is_first() else arguments.output,
            bits=bits,
            activation_bits=activation_bits,
            activation_average=arguments.activation_average,
            granularity=arguments.granularity,
            exclude=arguments.exclude,
            pins=arguments.pin,
            equalize=arguments.equalize,
            quantize_outputs=arguments.quantize_outputs,
            target=arguments.target,
            opset=arguments.opset,
            keep_metadata=arguments.keep_metadata,
            sensitivity=table,
            options=measurement,
            tune=tuning,
            checkpoint=arguments.checkpoint,
            resume=arguments.resume,
            evaluation=evaluation,
            metric=arguments.metric,
            provider=arguments.provider,
            details=arguments.report is not None and is_first(),
            progress=progress,
        )
    if not is_first():
        return
    if arguments.save_plan is not None:
        write_text(arguments.save_plan, result.plan.to_json())
    if arguments.save_sensitivity is not None:
        write_text(arguments.save_sensitivity, result.sensitivity.to_json())
    write_json(arguments.json, result_data(result))
    remarks = [] if arguments.random is None else [_RANDOM]
    if arguments.from_sensitivity is not None and (remark := _other_rounding(result)) is not None:
        remarks.append(f"{arguments.from_sensitivity} {remark}")
    if arguments.report is not None:
        write_report(arguments.report, result, arguments, remarks)
    print_result(result)
    for remark in remarks:
        console.note(remark)
    if not arguments.dry_run:
        console.line(f"wrote {arguments.output}")
    if arguments.report is not None:
        console.line(f"the report is in {arguments.report}")
    if result.verification is not None:
        options.judge(result.verification, arguments.max_drop)


def _other_rounding(result: Result) -> str | None:
    """What to remark on a table whose losses are of another rounding than the file's weights have."""
    table = result.sensitivity
    if table.rounding == "learned" and result.tuned is None:
        return "expects learned rounding, and none was learned: measure it again with --rounding nearest"
    if table.rounding == "nearest" and result.tuned is not None and table.method in LOSS_METHODS:
        return "has losses of rounding to nearest, and rounding was learned: measure it again with --rounding learned"
    return None
