"""The files in the oldest onnxruntime that is supported, in a process of its own."""

import json
import os
import subprocess

import numpy as np
import onnx
import pytest
from small_graphs import initializers, operators, outputs

from .kinds import KINDS, Quantized
from .networks import STEM, QuantizedNetwork, mixed_layer, packed_layer, with_int32_bias

PYTHON = os.environ.get("AMQ_OLDEST_PYTHON")
pytestmark = [
    pytest.mark.oldest,
    pytest.mark.skipif(not PYTHON, reason="AMQ_OLDEST_PYTHON doesn't name the python of onnxruntime 1.16.3's venv"),
]
SCRIPT = """
import glob, json, sys
import numpy as np
import onnxruntime

print(onnxruntime.__version__)
for path in sorted(glob.glob(sys.argv[1] + "/*.onnx")):
    stem = path[: -len(".onnx")]
    feeds = dict(np.load(stem + ".npz"))
    for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.add_session_config_entry("session.x64quantprecision", "1")
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, "ORT_" + level)
        if level == "ENABLE_EXTENDED":
            options.optimized_model_filepath = stem + ".optimized"
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        np.save(stem + "." + level + ".npy", session.run(None, feeds)[0])
"""
KERNELS = {"Conv": {"QLinearConv"}, "Gemm": {"QGemm"}, "MatMul": {"QLinearMatMul", "MatMulIntegerToFloat"}}


def run_there(folder, models):
    """Save models with their data, and run them all in the old onnxruntime."""
    for name, (proto, feeds) in models.items():
        onnx.save(proto, folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", **feeds)
    done = subprocess.run([PYTHON, "-c", SCRIPT, str(folder)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("1.16")


@pytest.mark.parametrize("bits", [3, 8])
def test_every_kind_of_layer_runs_the_same(bits, tmp_path):
    """Attention apart, whose operator set it doesn't know."""
    kinds = {kind.replace(" ", ""): kind for kind in KINDS if kind != "Attention"}
    quantized = {name: Quantized(kind, bits) for name, kind in kinds.items()}
    run_there(tmp_path, {name: (layer.written, layer.feeds) for name, layer in quantized.items()})
    for name, layer in quantized.items():
        here = outputs(layer.written, layer.feeds)[0]
        for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
            there = np.load(tmp_path / f"{name}.{level}.npy")
            np.testing.assert_allclose(there, here, rtol=0, atol=0.02 * np.abs(here).max(), err_msg=f"{name} {level}")
        ran = operators(onnx.load(tmp_path / f"{name}.optimized"))
        known = {*operators(layer.prepared.model), *KINDS[kinds[name]][1]}
        assert not {"Cast", "Mul", "Reshape"} & set(ran) - known, (name, ran)


@pytest.mark.parametrize("opset", [13, 18])
def test_every_width_runs_the_same_on_integer_kernels(opset, tmp_path):
    written = {}
    for bits in range(1, 9):
        for kind, shape in (("Conv", (5, 3, 3, 3)), ("Gemm", (7, 5)), ("MatMul", (7, 5))):
            _, packed, _, feeds = packed_layer(kind, shape, bits, opset)
            packed = with_int32_bias(packed)
            written[f"{kind}{bits}"] = packed, feeds, float(initializers(packed)[f"{STEM}a1s"]), {kind: 1}
    for kind, shape in (("Conv", (5, 3, 3, 3)), ("Gemm", (7, 5)), ("MatMul", (7, 5))):
        _, packed, _, feeds = mixed_layer(kind, shape, (4, 2, 7, 4, 2), opset)
        packed = with_int32_bias(packed)
        written[f"{kind}mixed"] = packed, feeds, float(initializers(packed)[f"{STEM}a1s"]), {kind: 1}
    quantized = QuantizedNetwork(opset)
    for weight_bits, activation_bits in ((8, 8), (5, 8), (3, 4), (1, 2)):
        _, packed, step = quantized.build(weight_bits, activation_bits)
        written[f"net{weight_bits}{activation_bits}"] = packed, quantized.feeds, step, {"Conv": 2, "Gemm": 1}
    run_there(tmp_path, {name: (proto, feeds) for name, (proto, feeds, _, _) in written.items()})
    wrong = {}
    for name, (proto, feeds, step, kinds) in written.items():
        (here,) = outputs(proto, feeds)
        for level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
            there = np.load(tmp_path / f"{name}.{level}.npy")
            if np.abs(there - here).max() > 1.001 * step:
                wrong[f"{name} {level}"] = float(np.abs(there - here).max() / step)
        ran = operators(onnx.load(tmp_path / f"{name}.optimized"))
        for kind, count in kinds.items():
            if sum(ran.count(kernel) for kernel in KERNELS[kind]) != count or {"Gather", "Cast"} & set(ran):
                wrong[f"{name} kernels"] = ran
    assert not wrong, json.dumps(wrong, indent=1)
