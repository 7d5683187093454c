"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import onnx

from amq_onnx.cli import console
from amq_onnx.errors import UsageError
from amq_onnx.measurement_options import METHODS, SensitivityOptions
from amq_onnx.model.data import Dataset, open_data
from amq_onnx.model.file import require_folder
from amq_onnx.model.heads import asked_losses
from amq_onnx.model.random_data import random_data
from amq_onnx.pins import Pin
from amq_onnx.pipeline import check_widths
from amq_onnx.quantizer.encoding import MAX_BITS
from amq_onnx.rewriting import Prepared, prepare
from amq_onnx.runtime.session import silence_runtime
from amq_onnx.runtime.verification import Verification, doubt, require_gate
from amq_onnx.sensitivity import Rounding, Sensitivity, read_json_file
from amq_onnx.targets import TARGETS


def widths(text: str) -> tuple[int, ...]:
    """ "2-8" or "2,4,8" as widths, rising."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.strip().isdigit() or (dash and not last.strip().isdigit()):
            raise argparse.ArgumentTypeError(f"'{text}' is no list of widths: write 2-8 or 2,4,8")
        found.update(range(int(first), int(last or first) + 1))
    if not found or min(found) < 1 or max(found) > MAX_BITS:
        raise argparse.ArgumentTypeError(f"'{text}' has widths outside 1 to {MAX_BITS}")
    return tuple(sorted(found))


def activation_widths(text: str) -> tuple[int, ...] | None:
    """Widths of activations, or None for "float"."""
    if text == "float":
        return None
    found = widths(text)
    if found[0] < 2:
        raise argparse.ArgumentTypeError(f"'{text}': activations have 2 bits or more, or are float")
    return found


def pin(text: str) -> Pin:
    """ "^image$=8" as the pattern of sites and their width."""
    pattern, _, bits = text.rpartition("=")
    if not pattern or not bits.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' gives no site a width: write REGEX=BITS, like '^image$=8'")
    if not 1 <= int(bits) <= MAX_BITS:
        raise argparse.ArgumentTypeError(f"'{text}' has a width outside 1 to {MAX_BITS}")
    return pattern, int(bits)


def input_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """ "images=1,3,320,320" as the input's name and its sizes."""
    name, _, sizes = text.rpartition("=")
    parts = sizes.split(",")
    if not name or not all(part.strip().isdigit() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"'{text}' is no shape of an input: write images=1,3,320,320")
    return name, tuple(map(int, parts))


def loss(text: str) -> str:
    """A loss, or several by output."""
    try:
        asked_losses(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("--loss ")) from error
    return text


def add_model(parser: argparse.ArgumentParser) -> None:
    """The float model."""
    parser.add_argument("model", type=Path, metavar="MODEL", help="the float .onnx file")


def add_data(parser: argparse.ArgumentParser, what: str) -> None:
    """Where data come from."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--data",
        metavar="DATA",
        help=f"{what}: an .npz file keyed by input name (and `labels`), a folder of them, or script.py:function",
    )
    group.add_argument(
        "--random",
        nargs="?",
        type=int,
        const=32,
        metavar="N",
        help="N random inputs instead (default 32): sizes and speed mean something, accuracy doesn't",
    )
    parser.add_argument(
        "--shape",
        action="append",
        default=[],
        type=input_shape,
        metavar="INPUT=N,N,...",
        help="sizes of a random input that the model leaves free, like images=1,3,320,320 (may be repeated)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use no more than the first N samples")


def add_graph(parser: argparse.ArgumentParser) -> None:
    """What is quantized, and in which operator set."""
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="REGEX",
        help="leave sites whose name matches float (may be repeated)",
    )
    add_target(parser)


def add_target(parser: argparse.ArgumentParser) -> None:
    """What the file is for, and its operator set."""
    parser.add_argument(
        "--target",
        choices=list(TARGETS),
        default="onnxruntime",
        help="onnxruntime: every width at its exact size, at int8 speed; standard: ONNX's own INT2, INT4, INT8, INT16",
    )
    parser.add_argument("--opset", type=int, metavar="N", help="convert the model to this operator set first")


def add_widths(parser: argparse.ArgumentParser) -> None:
    """Widths to choose from."""
    parser.add_argument("--bits", type=widths, default="2-8", metavar="2-8|2,4,8", help="widths of weights")
    parser.add_argument(
        "--activation-bits",
        type=activation_widths,
        default="8",
        metavar="8|4-8|float",
        help="widths of activations; several need --activation-average",
    )
    parser.add_argument(
        "--activation-average", type=float, metavar="B", help="bound on the mean width of activation elements"
    )
    add_granularity(parser)


def add_pins(parser: argparse.ArgumentParser) -> None:
    """Widths of single sites."""
    parser.add_argument(
        "--pin",
        action="append",
        default=[],
        type=pin,
        metavar="REGEX=BITS",
        help="the width of sites whose name matches, in place of those to choose from (may be repeated)",
    )


def add_granularity(parser: argparse.ArgumentParser) -> None:
    """What has a width of its own."""
    parser.add_argument(
        "--granularity",
        choices=["layer", "channel"],
        default="layer",
        help="one width a weight, or each output channel its own, where that pays (default: %(default)s)",
    )


def add_measurement(parser: argparse.ArgumentParser) -> None:
    """How sensitivity is measured."""
    default = SensitivityOptions()
    parser.add_argument(
        "--sensitivity",
        choices=list(METHODS),
        help=f"how sensitivity is measured (default: {default.method}; gauss-newton with --granularity channel)",
    )
    parser.add_argument(
        "--loss",
        type=loss,
        default="auto",
        metavar="auto|softmax|sigmoid|squared|OUTPUT=LOSS,...",
        help="loss on the outputs, or on each by its name; OUTPUT=none leaves one out, OUTPUT=squared*SCORES weighs "
        "an error by the highest probability of SCORES",
    )
    parser.add_argument(
        "--ranges",
        choices=["curvature", "mse", "minmax", "percentile"],
        default=default.ranges,
        help="how ranges are found",
    )
    parser.add_argument(
        "--equalize",
        action="store_true",
        help="even out the channels between layers first, by powers of two that leave the float model as it is",
    )
    parser.add_argument(
        "--quantize-outputs",
        action="store_true",
        help="let a Conv that makes an output of the model round it to 8 bits, which takes less time",
    )
    parser.add_argument(
        "--no-bias-correction",
        action="store_true",
        help="leave biases as they are instead of taking off the mean error of rounded weights",
    )
    parser.add_argument(
        "--no-input-weighting",
        action="store_true",
        help="scales of weights of the least error of the weights themselves, not of their layers' outputs",
    )
    parser.add_argument(
        "--rounding",
        choices=list(get_args(Rounding)),
        help="of which rounding losses are measured (default: learned where it is to be learned, else nearest)",
    )
    parser.add_argument(
        "--relative-error",
        type=float,
        default=default.relative_error,
        metavar="E",
        help="gauss-newton, hessian: standard error asked of every trace (default: %(default)s)",
    )
    parser.add_argument(
        "--max-probes", type=int, default=default.max_probes, metavar="N", help="probes a sample at most"
    )
    parser.add_argument(
        "--curvature-samples",
        type=int,
        default=default.samples,
        metavar="N",
        help="samples that sensitivity is measured on at most (default: %(default)s); ranges see all",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers")
    parser.add_argument("--device", default="cpu", help="torch device of the measurement: cpu, cuda, cuda:1")


def add_json(parser: argparse.ArgumentParser) -> None:
    """A machine-readable summary."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary as JSON")


def measurement(arguments: argparse.Namespace) -> SensitivityOptions:
    """The options of `add_measurement`."""
    if arguments.max_probes < 2:
        raise UsageError("--max-probes must be 2 or more: one draw has no standard error")
    if not arguments.relative_error > 0:
        raise UsageError("--relative-error must be above 0")
    if arguments.curvature_samples < 1:
        raise UsageError("--curvature-samples must be 1 or more")
    if arguments.seed < 0:
        raise UsageError("--seed must be 0 or more")
    channels = arguments.granularity == "channel"
    return SensitivityOptions(
        method=arguments.sensitivity or ("gauss-newton" if channels else SensitivityOptions.method),
        loss=arguments.loss,
        ranges=arguments.ranges,
        relative_error=arguments.relative_error,
        max_probes=arguments.max_probes,
        samples=arguments.curvature_samples,
        seed=arguments.seed,
        device=require_device(arguments.device),
        correct_biases=not arguments.no_bias_correction,
        weigh_inputs=not arguments.no_input_weighting,
        rounding=arguments.rounding,
        channels=channels,
    )


def require_device(name: str) -> str:
    """`name` if torch has that device. Raises UsageError otherwise."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"--device '{name}' is unknown: use cpu, cuda or cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch finds no CUDA device here; use --device cpu")
    return name


def opened(arguments: argparse.Namespace, model: onnx.ModelProto, *, required: bool = True) -> Dataset | None:
    """The data that --data or --random name. Raises UsageError if there are none and they are `required`."""
    for option in ("limit", "random"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise UsageError(f"--{option} must be 1 or more")
    if arguments.random is not None:
        samples = min(arguments.random, arguments.limit or arguments.random)
        return random_data(model, samples, getattr(arguments, "seed", 0), dict(arguments.shape))
    if arguments.shape:
        raise UsageError("--shape gives the sizes of random inputs: it needs --random")
    if arguments.data is not None:
        return open_data(arguments.data, model, arguments.limit)
    if required:
        raise UsageError("give --data with inputs of the model, or --random to go without")
    return None


def prepared(
    arguments: argparse.Namespace, model: onnx.ModelProto, *, equalize: bool = False, quantize_outputs: bool = False
) -> Prepared:
    """`model` as `add_graph`, or `add_target` alone, says to prepare it; folding in onnxruntime logs nothing."""
    silence_runtime()
    exclude = tuple(getattr(arguments, "exclude", ()))
    return prepare(
        model,
        opset=arguments.opset,
        exclude=exclude,
        target=arguments.target,
        equalize=equalize,
        quantize_outputs=quantize_outputs,
    )


def checked_widths(arguments: argparse.Namespace) -> tuple[Sequence[int], Sequence[int] | None]:
    """Widths of weights and activations, where a budget decides between them."""
    check_widths(
        arguments.bits,
        arguments.activation_bits,
        arguments.activation_average,
        arguments.target,
        arguments.granularity,
    )
    return arguments.bits, arguments.activation_bits


def loaded_sensitivity(path: Path | None) -> Sensitivity | None:
    """The table in `path`, if one is named."""
    return None if path is None else Sensitivity.from_json(read_json_file(path), str(path))


def judge(verification: Verification, max_drop: float | None) -> None:
    """Raise GateError beyond `max_drop`; a note where the samples are too few to be sure of what is within."""
    require_gate(verification, max_drop)
    remark = doubt(verification, max_drop)
    if remark is not None:
        console.note(remark)


def require_writable(arguments: argparse.Namespace, *options: str) -> None:
    """Raise UsageError before any work if a file that is to be written has no folder to go to."""
    for option in options:
        path = getattr(arguments, option)
        if path is not None:
            require_folder(path, "-o" if option == "output" else f"--{option.replace('_', '-')}")
