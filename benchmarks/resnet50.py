"""ResNet50 (random weights): uniform widths (bytes, integer kernels, loading, latency), then `amq quantize`.

AMQ_OLDEST_PYTHON names a python with onnxruntime 1.16.3, in which the same files are then run as well.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from command import amq
from pytorchcv.models.resnet import resnet50

from amq_onnx.calibration import calibrate
from amq_onnx.compiler import compile_plan
from amq_onnx.executor.interpreter import Executor
from amq_onnx.exporting import export
from amq_onnx.model.file import fingerprint, read_model, write_model
from amq_onnx.model.random_data import random_data
from amq_onnx.plan import ActivationPlan, Plan
from amq_onnx.quantizer.activation_ranges import activation_range
from amq_onnx.rewriting import prepare
from amq_onnx.runtime.latency import alternate

# Loads one file in a process of its own, so that the peak is that of this file: seconds, peak MB, operators.
_LOAD = """
import collections, json, sys, tempfile, time
import numpy, onnx, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
options.intra_op_num_threads = 2
start = time.perf_counter()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - start
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
with tempfile.TemporaryDirectory() as folder:
    options.optimized_model_filepath = folder + "/optimized.onnx"
    onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath).graph
kinds = collections.Counter(node.op_type for node in graph.node)
image = numpy.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(numpy.float32)
output = session.run(None, {session.get_inputs()[0].name: image})[0]
print(json.dumps({"version": onnxruntime.__version__, "seconds": seconds, "peak": peak, "kinds": kinds,
                  "output": output[0, :8].tolist()}))
"""
_SETTINGS = {"W8A8": (8, 8), "W4A8": (4, 8), "W3A8": (3, 8), "W2A8": (2, 8), "W4A4": (4, 4)}


def build(folder: Path, opset: int) -> dict[str, Path]:
    """Float and quantized files of every setting."""
    original = folder / "resnet50.onnx"
    export(resnet50(), original, inputs={"input": (1, 3, 224, 224)}, opset=opset)
    prepared = prepare(read_model(original))
    names = [site.name for site in prepared.sites.activations]
    seen = calibrate(Executor(prepared.model), random_data(prepared.model, 4, seed=0), names, [])
    files = {"float": original}
    for setting, (bits, activation_bits) in _SETTINGS.items():
        activations = {
            name: ActivationPlan(activation_bits, activation_range(seen.histograms[name], activation_bits))
            for name in names
        }
        weights = {site.name: bits for site in prepared.sites.weights}
        plan = Plan(fingerprint(prepared.model), "minmax", weights, activations)
        files[setting] = folder / f"{setting}.onnx"
        write_model(compile_plan(prepared, plan), files[setting])
    return files


def loaded(python: str, path: Path) -> dict[str, object]:
    """What _LOAD prints for `path`, the best of three processes."""
    runs = [
        json.loads(subprocess.run([python, "-c", _LOAD, str(path)], check=True, capture_output=True, text=True).stdout)
        for _ in range(3)
    ]
    return min(runs, key=lambda run: float(run["seconds"]))


def main() -> None:
    import onnxruntime

    pythons = [sys.executable, *filter(None, [os.environ.get("AMQ_OLDEST_PYTHON")])]
    with tempfile.TemporaryDirectory() as name:
        files = build(Path(name), opset=18)
        base = files["W8A8"].stat().st_size
        convolutions = Counter(node.op_type for node in onnx.load(files["float"]).graph.node)["Conv"]
        print(f"float file {files['float'].stat().st_size:,} bytes, {convolutions} Conv nodes")
        for python in pythons:
            reference: dict[str, object] = {}
            for setting in _SETTINGS:
                run = loaded(python, files[setting])
                reference = reference or run
                kinds = run["kinds"]
                assert isinstance(kinds, dict)
                print(
                    f"onnxruntime {run['version']} {setting}: {files[setting].stat().st_size:,} bytes "
                    f"({files[setting].stat().st_size / base:.3f} of W8A8), QLinearConv {kinds.get('QLinearConv', 0)}, "
                    f"Conv {kinds.get('Conv', 0) + kinds.get('FusedConv', 0)}, load {run['seconds']:.2f} s "
                    f"({float(run['seconds']) - float(reference['seconds']):+.2f}), peak {run['peak']:.0f} MB "  # type: ignore[arg-type]
                    f"({float(run['peak']) - float(reference['peak']):+.0f})"  # type: ignore[arg-type]
                )
        image = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        sessions = {
            setting: onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for setting, path in files.items()
        }
        for setting in ("float", "W4A8", "W3A8", "W2A8", "W4A4"):
            latency = alternate(
                lambda: sessions["W8A8"].run(None, {"input": image}),
                lambda setting=setting: sessions[setting].run(None, {"input": image}),
                seconds=20,
            )
            print(f"latency of {setting}: {latency.ratio:.3f} of W8A8 ({latency.runs} runs in turns, 1 thread)")
        seconds, peak = amq(
            *("quantize", str(files["float"]), "-o", str(Path(name) / "mixed.onnx"), "--size", "0.14"),
            *("--random", "32", "--relative-error", "0.1"),
        )
        print(f"amq quantize, 32 random images, traces to 10 %: {seconds:.0f} s, peak {peak:.0f} MB")


if __name__ == "__main__":
    main()
