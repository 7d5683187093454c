"""What is learned once the widths are chosen: the options of it, and how their values are read."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import get_args

import onnx

from amq_onnx.errors import UsageError
from amq_onnx.model.data import open_data
from amq_onnx.tuning.finetune import FineTuneOptions
from amq_onnx.tuning.loader import load_augmentation
from amq_onnx.tuning.rounding import RoundingOptions
from amq_onnx.tuning.tuner import TuneMethod, TuningOptions


def add_options(parser: argparse.ArgumentParser) -> None:
    """What is learned once the widths are chosen."""
    default = RoundingOptions()
    parser.add_argument(
        "--tune",
        choices=get_args(TuneMethod),
        help="what is learned once the widths are chosen (default: rounding where there is --data, else none)",
    )
    parser.add_argument(
        "--tune-steps", type=int, default=default.steps, metavar="N", help="steps a block (default: %(default)s)"
    )
    parser.add_argument(
        "--tune-samples",
        type=int,
        default=default.samples,
        metavar="N",
        help="calibration samples to learn from, at most (default: %(default)s)",
    )
    full = FineTuneOptions()
    parser.add_argument(
        "--tune-epochs", type=int, default=full.epochs, metavar="N", help="epochs of --tune full (default: %(default)s)"
    )
    parser.add_argument(
        "--tune-batch", type=int, default=full.batch_size, metavar="N", help="samples a step of --tune full"
    )
    parser.add_argument(
        "--tune-rate",
        type=float,
        default=full.rate,
        metavar="F",
        help="times the rates at which --tune full learns; more where much is lost and epochs are many (default: 1)",
    )
    parser.add_argument(
        "--tune-eval",
        metavar="DATA",
        help="what epochs of --tune full are judged by, best what the float model wasn't trained on (default: a tenth "
        "of --data, kept back)",
    )
    parser.add_argument(
        "--augment",
        metavar="FILE.py:FUNCTION",
        help="applied to every batch of --tune full: function(batch, generator)",
    )
    parser.add_argument(
        "--label-share",
        type=float,
        default=full.label_share,
        metavar="S",
        help="share of --tune full's loss that comes from `labels`; the rest comes from the float model (default: 0)",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="let layers multiply in bfloat16 in --tune full: faster on CPUs with AVX512-BF16 or AMX, and on GPUs",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FOLDER", help="keep there what tuning has reached")
    parser.add_argument("--resume", action="store_true", help="take up the tuning that --checkpoint holds")


def tuning(arguments: argparse.Namespace, model: onnx.ModelProto) -> TuningOptions:
    """The options of `add_options`, for `model`: by default nothing is learned from random inputs."""
    for option in ("tune_steps", "tune_samples", "tune_epochs", "tune_batch"):
        if getattr(arguments, option) < 1:
            raise UsageError(f"--{option.replace('_', '-')} must be 1 or more; use --tune none to learn nothing")
    if not 0 < arguments.tune_rate < math.inf:
        raise UsageError("--tune-rate must be above 0, and a number")
    if arguments.tune_eval is not None and arguments.tune != "full":
        raise UsageError("--tune-eval is what epochs of --tune full are judged by: give both, or neither")
    if not 0 <= arguments.label_share <= 1:
        raise UsageError("--label-share must be between 0 and 1")
    method: TuneMethod | None = arguments.tune
    if method is None and arguments.random is not None:
        method = "none"
    common = {"seed": arguments.seed, "device": arguments.device}
    rounding = RoundingOptions(steps=arguments.tune_steps, samples=arguments.tune_samples, **common)
    full = FineTuneOptions(
        epochs=arguments.tune_epochs,
        batch_size=arguments.tune_batch,
        rate=arguments.tune_rate,
        label_share=arguments.label_share,
        augment=None if arguments.augment is None else load_augmentation(arguments.augment),
        bfloat16=arguments.bfloat16,
        **common,
    )
    held_out = None if arguments.tune_eval is None else open_data(arguments.tune_eval, model)
    return TuningOptions(method, rounding, full, held_out)
