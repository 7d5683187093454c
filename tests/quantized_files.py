"""Quantized files of small models, made with little curvature, and what onnxruntime computes with them."""

import numpy as np
import onnx
import onnxruntime
from cli.networks import run_float, save

from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.pipeline import quantize
from amq_onnx.runtime.session import exact_options

FAST = SensitivityOptions(relative_error=0.5, max_probes=2, samples=8)


def quantized(model, data, folder, size=0.5, **more):
    path = save(model, folder / "m.onnx")
    return quantize(path, data, size=size, output=folder / "o.onnx", options=FAST, **{"tune": "none", **more})


def run_file(path, feeds):
    options = onnxruntime.SessionOptions()
    for key, value in exact_options(onnx.load(path), "cpu").items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, feeds), strict=True))


def relative_noise(model, path, feeds, output):
    wanted, found = run_float(model, feeds)[output], run_file(path, feeds)[output]
    assert wanted.shape == found.shape
    return np.square(wanted - found).sum() / np.square(wanted).sum()
