"""ONNX's own operators between two quantized layers: onnxruntime takes every file, and computes nearly the same."""

import importlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized_files import run_file

from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import Dataset
from amq_onnx.model.inputs import input_specs
from amq_onnx.pipeline import quantize

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PARTS = 4
# Not finite on numbers between 0 and 1, or by design; and one whose body has a name of the graph around it.
LEFT_OUT = (
    "acosh",
    "attention_4d_with_past_and_present_qk_matmul_bias_3d",
    "attention_4d_with_past_and_present_qk_matmul_bias_4d",
    "scan_sum",
)
# Signal to noise in dB, which operators that jump or have poles miss.
LEAST = 15
COARSE = ("ceil", "floor", "round", "hardmax", "isinf", "isnan", "sign", "bernoulli", "top_k", "shrink", "tan", "mod")


@pytest.fixture(scope="module")
def cases():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        found = importlib.import_module("operators").float_cases()
    return {name: case for name, case in sorted(found.items()) if not name.startswith(LEFT_OUT)}


def between_layers(case):
    """The operator's model with a layer in front of its first float input and one behind each float output, and that
    input's shape; None where there is nothing to put them at."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    graph, (inputs, outputs) = model.graph, case.data_sets[0]
    values, read = list(graph.input), None
    del graph.input[:]
    for value, array in zip(values, inputs, strict=False):
        if not isinstance(array, np.ndarray):
            return None
        if read is None and is_tensor(value, array):
            read = value.name, array.shape
        else:
            graph.initializer.append(numpy_helper.from_array(array, value.name))
    if read is None:
        return None
    name, shape = read
    # Close to the identity: operators see numbers between 0 and 1, for which all are defined.
    size = shape[channel_axis(shape)]
    weight = (np.eye(size) + np.random.default_rng(0).random((size, size)) / (20 * size)).astype(np.float32)
    graph.node.insert(0, layer(graph, "given", weight, name, shape))
    graph.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, shape))
    values = list(graph.output)
    del graph.output[:]
    for value, array in zip(values, outputs, strict=True):
        if is_tensor(value, array):
            shape, axis = list(array.shape), channel_axis(array.shape)
            weight = np.random.default_rng(1).random((5, shape[axis])).astype(np.float32)
            graph.node.append(layer(graph, value.name, weight, f"{value.name}_behind", shape))
            shape[axis] = 5
            graph.output.append(helper.make_tensor_value_info(f"{value.name}_behind", TensorProto.FLOAT, shape))
        else:
            graph.output.append(value)
    return model, read[1]


def is_tensor(value, array):
    floats = value.type.tensor_type.elem_type == TensorProto.FLOAT
    return floats and isinstance(array, np.ndarray) and array.ndim >= 2 and array.size > 0


def is_image(shape):
    return 3 <= len(shape) <= 5


def channel_axis(shape):
    return 1 if is_image(shape) else -1


def layer(graph, source, weight, target, shape):
    """A Conv with a kernel of 1 for images, a MatMul for all else; weight [out, in]."""
    array = weight.reshape(*weight.shape, *[1] * (len(shape) - 2)) if is_image(shape) else weight.T.copy()
    graph.initializer.append(numpy_helper.from_array(array, f"{target}_weight"))
    return helper.make_node("Conv" if is_image(shape) else "MatMul", [source, f"{target}_weight"], [target])


@pytest.mark.parametrize("part", range(PARTS))
def test_files_run_and_are_close(cases, part, tmp_path):
    wrong, tried = {}, 0
    for name in list(cases)[part::PARTS]:
        found = between_layers(cases[name])
        if found is None:
            continue
        model, shape = found
        path = tmp_path / "m.onnx"
        onnx.save(model, path)
        feeds = {"given": np.random.default_rng(2).uniform(0.1, 0.9, shape).astype(np.float32)}
        try:
            wanted = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
        except Exception:  # onnxruntime lacks the operator, or the form of it
            continue
        tried += 1
        try:
            data = Dataset(lambda feeds=feeds: [feeds], input_specs(model), "the data")
            options = SensitivityOptions(method="norm")
            quantize(path, data, size="1MB", output=tmp_path / "o.onnx", bits=(8,), options=options, tune="none")
            written = list(run_file(tmp_path / "o.onnx", feeds).values())
        except Exception as error:
            wrong[name] = f"{type(error).__name__}: {error}"
            continue
        for before, after in zip(wanted, written, strict=True):
            if isinstance(before, np.ndarray) and before.dtype == np.float32 and not name.startswith(COARSE):
                noise, signal = np.square(before - after).sum(), np.square(before).sum()
                if not noise <= signal * 10 ** (-LEAST / 10):
                    wrong[name] = f"{10 * np.log10(signal / noise):.1f} dB"
    assert not wrong, "\n".join(f"{name}: {text}" for name, text in wrong.items())
    assert tried > 100
