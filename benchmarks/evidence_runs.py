"""Runs the comparisons that docs/evidence.md tells of, and saves their figures in docs/evidence/.

    AMQ_DATA=... python benchmarks/evidence_runs.py [--networks A,B] [--settings A,B] [--seeds 3]

A file for each network, setting and seed, which is left alone where it is there; then `make evidence` writes the page.
The networks of the digits need no AMQ_DATA; those that aren't there (models/README.md says how to train them) are left
out.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import amq

_HERE = Path(__file__).resolve().parent
_MODELS = _HERE.parent / "models"
_TRAINED = _HERE.parent / "out"  # where models/README.md says to train them to
RESULTS = _HERE.parent / "docs" / "evidence"
_WIDTHS = "hybrid,trace,eigenvalue,norm,uniform,worst,random"


@dataclass(frozen=True)
class Network:
    """A model, its calibration and test data, and options of its measurements."""

    path: str
    calibration: str
    test: str
    options: tuple[str, ...] = ()


def _digits(kind: str) -> Network:
    return Network(
        str(_MODELS / f"digits_{kind}.onnx"), f"{_HERE}/evidence_data.py:digits", f"{_MODELS}/digits.py:test"
    )


def _cifar(path: str) -> Network:
    return Network(path, f"{_HERE}/evidence_data.py:cifar", f"{_HERE}/real_data.py:resnet20_test")


NETWORKS = {
    **{f"digits-{kind}": _digits(kind) for kind in ("resnet", "inception", "squeezenext", "transformer")},
    **{f"cifar-{kind}": _cifar(f"{_TRAINED}/cifar_{kind}.onnx") for kind in ("residual", "inception")},
    "cifar-squeezenext": _cifar(f"{RESULTS}/cifar_squeezenext.onnx"),
    "resnet20": _cifar(f"{os.environ.get('AMQ_DATA', '')}/resnet20_cifar10_op20.onnx"),
    "mobilenetv2": Network(
        f"{os.environ.get('AMQ_DATA', '')}/mobilenetv2_imagenet_op20.onnx",
        f"{_HERE}/real_data.py:mobilenetv2_calibration",
        f"{_HERE}/real_data.py:mobilenetv2_test",
        ("--curvature-samples", "64"),
    ),
    "retinanet": Network(
        f"{RESULTS}/retinanet_small.onnx",
        f"{_MODELS}/scenes.py:calibration",
        f"{_MODELS}/scenes.py:test",
        (
            *("--metric", f"{_MODELS}/detection_metric.py:mean_average_precision"),
            *("--loss", "scores=sigmoid,boxes=squared*scores", "--curvature-samples", "64"),
        ),
    ),
}
_MIXED = ("--activation-bits", "3-8", "--activation-average", "5")
SETTINGS = {
    "plain": ("--uniform-bits", "3-4", "--strategies", _WIDTHS),
    "mixed": ("--uniform-bits", "4", *_MIXED, "--strategies", _WIDTHS),
    "mixed4": (
        *("--uniform-bits", "8", "--activation-bits", "2-8", "--activation-average", "4"),
        *("--strategies", _WIDTHS),
    ),
    "tuned": ("--uniform-bits", "3", "--strategies", _WIDTHS, "--tune", "rounding", "--tune-steps", "300"),
    "mixed-tuned": (
        *("--uniform-bits", "4", *_MIXED, "--strategies", "hybrid,trace,norm,uniform"),
        *("--tune", "rounding", "--tune-steps", "300"),
    ),
    "haq": (
        *("--uniform-bits", "3", "--strategies", "trace,haq", "--episodes", "600"),
        *("--tune", "rounding", "--tune-steps", "300"),
    ),
}
# The layers whose spectra the authors show, counted from one; of networks that are exported here with random weights.
LAYERS = {"resnet50": (3, 19), "inceptionv3": (4,)}


def main() -> None:
    """Run what isn't there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--settings", default="plain,mixed,mixed4,tuned,haq,spectrum,noise")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if "spectrum" in arguments.settings.split(","):
        for structure in LAYERS:
            path = RESULTS / f"{structure}.layers.json"
            if not path.exists():
                path.write_text(_lines({"network": structure, "weights": _layers(structure)}))
                print(path.name, flush=True)
    for setting in arguments.settings.split(","):
        for name in arguments.networks.split(","):
            network = NETWORKS[name]
            for seed in range(arguments.seeds):
                single = setting in ("spectrum", "noise")
                if single and seed:
                    continue
                path = RESULTS / (f"{name}.{setting}.json" if single else f"{name}.{setting}.{seed}.json")
                if path.exists() or not Path(network.path).is_file():
                    continue
                os.environ["EVIDENCE_SEED"] = str(seed)
                found = _run(network, setting, seed)
                path.write_text(_lines({"network": name, "setting": setting, "seed": seed, **found}))
                print(path.name, flush=True)


def _layers(structure: str) -> dict[str, Any]:
    """Spectra of the authors' layers."""
    with tempfile.TemporaryDirectory() as folder:
        model, saved = Path(folder) / "model.onnx", Path(folder) / "found.json"
        subprocess.run([sys.executable, str(_MODELS / "structures.py"), structure, "-o", str(model)], check=True)
        amq("inspect", str(model), "--json", str(saved))
        names = list(json.loads(saved.read_text())["weights"])
        chosen = "|".join(re.escape(names[number - 1]) for number in LAYERS[structure])
        # Scores of random weights are so far apart that softmax is flat.
        given = (str(model), "--random", "4", "--loss", "squared", "--weights", chosen, "--top", "2")
        amq("spectrum", *given, "--json", str(saved))
        return _firsts(saved)


def _firsts(saved: Path) -> dict[str, Any]:
    """Of each weight in a saved spectrum, the two largest eigenvalues and the trace."""
    rows = json.loads(saved.read_text())["weights"]
    return {
        name: {"first": row["eigenvalues"][0], "second": row["eigenvalues"][-1], "trace": row["trace"]}
        for name, row in rows.items()
    }


def _lines(found: dict[str, Any]) -> str:
    """JSON with a line for each row."""
    rows = found.pop("rows", None)
    text = json.dumps(found)
    if rows is None:
        return text + "\n"
    return text[:-1] + ', "rows": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]}\n"


def _run(network: Network, setting: str, seed: int) -> dict[str, Any]:
    """The figures of one run, as its command saves them."""
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "found.json"
        data = (network.path, "--data", network.calibration)
        if setting == "noise":
            script = str(_HERE / "random_perturbations.py")
            subprocess.run([sys.executable, script, *data, "--json", str(saved)], check=True, stdout=subprocess.DEVNULL)
            return json.loads(saved.read_text())  # type: ignore[no-any-return]
        options = ("--seed", str(seed), "--json", str(saved))
        if setting == "spectrum":
            amq("spectrum", *data, "--limit", "64", "--top", "2", *options)
            return {"weights": _firsts(saved)}
        amq("compare", *data, "--eval", network.test, *SETTINGS[setting], *network.options, *options)
        found: dict[str, Any] = json.loads(saved.read_text())
    for row in found["rows"]:
        del row["activations"]  # a hundred lines of names
        row["metric"] = row["metric"].rpartition("/")[2]  # where this copy lies is of no interest
    return found


if __name__ == "__main__":
    main()
