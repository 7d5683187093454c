"""Real models end to end, each by one `amq quantize` command, scored by their own labels or by agreement.

    AMQ_DATA=... python benchmarks/models.py [NAME ...] [--out out/models.json]

Magika (file types), PP-OCRv4's recogniser and detector, a YOLOv8n (NudeNet), Silero VAD; InceptionV3, SqueezeNext,
ResNeXt50, EfficientNet-B0, MobileNetV3 and a vision transformer with random weights (whose score is the cosine of their
outputs), and the networks of models/. A row has the options beside the size, bytes and their share of the float file,
mean bits of a weight, the score of the float model and of the file, latency relative to float, seconds and peak memory
of the whole command, and what stayed float.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import file_types
import speech
import text_lines
import torch
import yolov8n
from command import amq

from amq_onnx.exporting import export

_HERE = Path(__file__).resolve().parent
_MODELS = _HERE.parent / "models"


@dataclass(frozen=True)
class Case:
    """A model: where it is (it may be made in a folder), its data, its metric, and sizes with further options."""

    name: str
    model: Callable[[Path], str]
    runs: tuple[tuple[str, ...], ...]
    calibration: str | None = None
    test: str | None = None
    metric: str | None = None
    note: Callable[[Path, Path], str] | None = None


def _script(name: str) -> str:
    return str(_HERE / name)


def _digits(network: str) -> Case:
    data = str(_MODELS / "digits.py")
    return Case(
        f"digits {network}",
        lambda folder: str(_MODELS / f"digits_{network}.onnx"),
        ((".15",), (".12",)),
        f"{data}:calibration",
        f"{data}:test",
    )


def _structure(name: str, make: Callable[[], torch.nn.Module], pixels: int, *runs: tuple[str, ...]) -> Case:
    def write(folder: Path) -> str:
        torch.manual_seed(0)
        path = folder / f"{name}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            export(make().eval(), path, inputs={"input": (1, 3, pixels, pixels)}, opset=20)
        return str(path)

    return Case(f"{name} {pixels} px", write, runs, metric="cosine")


def _pytorchcv(module: str, name: str) -> torch.nn.Module:
    network: torch.nn.Module = getattr(import_module(f"pytorchcv.models.{module}"), name)()
    return network


class VisionTransformer(torch.nn.Module):
    """ViT-S/16 (Dosovitskiy et al. 2020): 12 blocks, 384 wide, 6 heads; 22 million weights."""

    def __init__(self, width: int = 384, blocks: int = 12, heads: int = 6, pixels: int = 224) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(3, width, 16, 16)
        self.token = torch.nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.places = torch.nn.Parameter(torch.randn(1, (pixels // 16) ** 2 + 1, width) * 0.02)
        layer = torch.nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, torch.nn.functional.gelu, batch_first=True, norm_first=True
        )
        self.encoder = torch.nn.TransformerEncoder(layer, blocks, torch.nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = torch.nn.Linear(width, 1000)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Scores [n, 1000] of images [n, 3, 224, 224]."""
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(image), -1, -1), tokens], 1) + self.places
        scores: torch.Tensor = self.head(self.encoder(tokens)[:, 0])
        return scores


def _fed_back(model: Path, written: Path) -> str:
    """Silero's own use: its state fed back through recordings of 20 s."""
    before, after = speech.running(model), speech.running(written)
    return "state fed back: " + ", ".join(f"{rate} Hz {before[rate]:.4f} -> {after[rate]:.4f}" for rate in before)


_RANDOM = ("--random", "16", "--relative-error", "0.2", "--curvature-samples", "8")
_FLOAT = ("--activation-bits", "float")
CASES = (
    Case("magika", lambda folder: file_types.model(), ((".20",), (".14",)),
         _script("file_types.py:calibration"), _script("file_types.py:test")),
    Case("ppocr recogniser", lambda folder: text_lines.recognizer(),
         ((".26", *_FLOAT), (".18", *_FLOAT, "--bits", "5-8"), (".18", *_FLOAT), (".26",)),
         _script("text_lines.py:lines"), _script("text_lines.py:test_lines"),
         _script("text_lines.py:character_accuracy")),
    Case("ppocr detector", lambda folder: text_lines.detector(),
         ((".26", "--relative-error", "0.1"), (".18",)),
         _script("text_lines.py:pages"), _script("text_lines.py:test_pages"), _script("text_lines.py:line_f1")),
    Case("yolov8n", lambda folder: yolov8n.model(), ((".26", "--tune", "none"), (".15", "--tune", "none")),
         _script("yolov8n.py:calibration"), _script("yolov8n.py:test"), _script("yolov8n.py:average_precision")),
    Case("silero vad", lambda folder: speech.model(), ((".26",), (".18",)),
         _script("speech.py:calibration"), _script("speech.py:test"), _script("speech.py:area"), _fed_back),
    _structure("inceptionv3", partial(_pytorchcv, "inceptionv3", "inceptionv3"), 299, (".15", *_RANDOM)),
    _structure("squeezenext", partial(_pytorchcv, "squeezenext", "sqnxt23_w1"), 224, (".25", *_RANDOM)),
    _structure("efficientnet", partial(_pytorchcv, "efficientnet", "efficientnet_b0"), 224, (".25", *_RANDOM)),
    _structure("resnext", partial(_pytorchcv, "resnext", "resnext50_32x4d"), 224, (".25", *_RANDOM)),
    _structure("mobilenetv3", partial(_pytorchcv, "mobilenetv3", "mobilenetv3_large_w1"), 224, (".25", *_RANDOM)),
    _structure("vit", VisionTransformer, 224, (".15", *_RANDOM)),
    *(_digits(name) for name in ("resnet", "inception", "squeezenext", "transformer", "lstm")),
)  # fmt: skip


def run(case: Case) -> list[dict[str, Any]]:
    """The rows of one model, printed as they come. Its sensitivity is measured once for each setting of activations."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, written, summary = case.model(folder), folder / "out.onnx", folder / "summary.json"
        tables: dict[bool, Path] = {}
        for size, *options in case.runs:
            command = ["quantize", model, "-o", str(written), "--size", size, "--json", str(summary), *options]
            whole = "float" not in options
            if case.calibration is not None:
                if whole in tables:
                    command += ["--from-sensitivity", str(tables[whole])]
                else:
                    tables[whole] = folder / f"sensitivity{len(tables)}.json"
                    command += ["--data", case.calibration, "--save-sensitivity", str(tables[whole])]
                assert case.test is not None
                command += ["--eval", case.test]
            command += [] if case.metric is None else ["--metric", case.metric]
            measured = "--from-sensitivity" not in command
            seconds, peak = amq(*command)
            row = _row(case.name, size, options, json.loads(summary.read_text()), seconds, peak, measured)
            if case.note is not None:
                row["note"] = case.note(Path(model), written)
            rows.append(row)
            _print(row)
    return rows


def _row(
    name: str, size: str, options: list[str], summary: dict[str, Any], seconds: float, peak: float, measured: bool
) -> dict[str, Any]:
    result = summary["verification"]
    return {
        "model": name,
        "size": size,
        "options": options,
        "bytes": summary["bytes"],
        "float_bytes": summary["float_bytes"],
        "bits": summary["mean_weight_bits"],
        "metric": Path(result["metric"]).name,
        "float_score": result["float_score"],
        "score": result["quantized_score"],
        "latency": result["latency_ratio"],
        "seconds": seconds,
        "measured": measured,
        "megabytes": peak,
        "left_float": summary["left_float"],
    }


def _print(row: dict[str, Any]) -> None:
    left = row["left_float"]
    reasons = sorted(set(left.values()))
    print(
        f"{row['model']:20s} {' '.join([row['size'], *row['options']]):58s} {row['bytes']:>10,} bytes "
        f"({row['bytes'] / row['float_bytes']:.4f}) {row['bits']:.2f} bits  {row['metric']} {row['float_score']:.4f} "
        f"-> {row['score']:.4f} ({100 * (row['score'] - row['float_score']):+.2f})  latency {row['latency']:.2f}  "
        f"{row['seconds']:.0f} s{'' if row['measured'] else ' (from a table)'} {row['megabytes']:.0f} MB  "
        f"float: {len(left)}{': ' + '; '.join(reasons) if left else ''}",
        flush=True,
    )
    if "note" in row:
        print(f"{'':20s} {row['note']}", flush=True)


def main() -> None:
    """Run the cases named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models whose names start so (default: all)")
    parser.add_argument("--out", type=Path, default=Path("out/models.json"))
    arguments = parser.parse_args()
    rows = []
    for case in CASES:
        if not arguments.names or any(case.name.startswith(name) for name in arguments.names):
            rows += run(case)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
