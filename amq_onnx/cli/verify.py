"""amq verify: two files on the same data, on a named execution provider."""

from __future__ import annotations

import argparse
from pathlib import Path

from amq_onnx.cli import console, options
from amq_onnx.cli.summary import print_verification, write_json
from amq_onnx.errors import UsageError
from amq_onnx.model.data import Dataset
from amq_onnx.model.file import read_model
from amq_onnx.runtime.session import PROVIDERS, silence_runtime
from amq_onnx.runtime.verification import check_gate, verify


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    options.add_model(parser)
    parser.add_argument("quantized", type=Path, metavar="OUT", help="the quantized .onnx file")
    options.add_data(parser, "evaluation data")
    parser.add_argument("--metric", help="top1, top5, agreement, cosine, sqnr or script.py:function")
    parser.add_argument("--max-drop", type=float, metavar="D", help="exit with 1 if the metric falls by more")
    parser.add_argument("--provider", choices=list(PROVIDERS), default="cpu", help="execution provider")
    parser.add_argument("--threads", type=int, default=0, help="threads of an operator (0: the runtime's choice)")
    parser.add_argument(
        "--session-option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="session configuration entry for the quantized model (may be repeated)",
    )
    options.add_json(parser)


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    options.require_writable(arguments, "json")
    check_gate(arguments.metric, arguments.max_drop)
    if arguments.threads < 0:
        raise UsageError("--threads must be 0 or more")
    silence_runtime()
    entries = {}
    for entry in arguments.session_option:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise UsageError(f"--session-option '{entry}' is not KEY=VALUE")
        entries[key] = value
    model = read_model(arguments.model)
    read_model(arguments.quantized)
    data = options.opened(arguments, model)
    assert isinstance(data, Dataset)
    with console.progress() as progress:
        verification = verify(
            arguments.model,
            arguments.quantized,
            data,
            metric=arguments.metric,
            provider=arguments.provider,
            options=entries,
            threads=arguments.threads,
            progress=progress,
        )
    write_json(arguments.json, verification.to_dict())
    print_verification(verification)
    options.judge(verification, arguments.max_drop)
