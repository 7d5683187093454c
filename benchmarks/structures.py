"""Four structures at full size, end to end on random inputs: seconds and peak memory of each step.

    python benchmarks/structures.py [resnet50 inceptionv3 squeezenext retinanet] [--json FILE]

Exported from PyTorch with random weights (models/structures.py), then `amq sensitivity`, `amq frontier`, `amq quantize`
at .15 of the file, which verifies in onnxruntime.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from command import amq

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "models"))
from structures import STRUCTURES, write

_RANDOM = ("--random", "8")
_SIZE = "0.15"


def main() -> None:
    """Print a line a structure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("structures", nargs="*", default=list(STRUCTURES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.structures:
        with tempfile.TemporaryDirectory() as folder:
            model, table, saved = (f"{folder}/{file}" for file in ("model.onnx", "sensitivity.json", "summary.json"))
            write(name, Path(model))
            steps = {
                "sensitivity": amq("sensitivity", model, "-o", table, *_RANDOM),
                "frontier": amq("frontier", model, table, "--json", f"{folder}/frontier.json"),
                "quantize": amq(
                    *("quantize", model, "-o", f"{folder}/out.onnx", "--size", _SIZE, "--from-sensitivity", table),
                    *(*_RANDOM, "--tune", "none", "--metric", "cosine", "--json", saved),
                ),
            }
            summary = json.loads(Path(saved).read_text())
            points = len(json.loads(Path(f"{folder}/frontier.json").read_text()))
        found = summary["verification"]
        row = {
            "structure": name,
            "pixels": STRUCTURES[name].pixels,
            "float_bytes": summary["float_bytes"],
            "bytes": summary["bytes"],
            "weights": len(summary["weights"]),
            "activations": len(summary["activations"]),
            "points": points,
            "cosine": found["quantized_score"],
            "latency": found["latency_ratio"],
            "seconds": {step: seconds for step, (seconds, _) in steps.items()},
            "megabytes": {step: peak for step, (_, peak) in steps.items()},
        }
        rows.append(row)
        taken = ", ".join(f"{step} {seconds:.0f} s {peak:.0f} MB" for step, (seconds, peak) in steps.items())
        print(
            f"{name} {row['pixels']} px: {row['float_bytes']:,} -> {row['bytes']:,} bytes, {row['weights']} weights, "
            f"{row['activations']} activations, {points} plans, cosine {row['cosine']:.4f}, latency "
            f"{row['latency']:.2f} of float; {taken}",
            flush=True,
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
