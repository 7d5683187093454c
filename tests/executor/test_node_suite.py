"""ONNX's own operator tests: every one whose operators the executor has, at opsets up to 25.

KNOWN lists, by reason, those that fail on purpose; one of them that passes fails the test as well.
"""

import re
import warnings
from functools import cache

import numpy as np
import onnx
import onnx.backend.test.loader
import pytest
import torch
from onnx import TensorProto, numpy_helper

from amq_onnx.executor.interpreter import Executor, unsupported_operators
from amq_onnx.executor.types import torch_tensor

KNOWN = {
    # 16-bit floats are computed in float32, and the reference's rounding is wider than its tolerance
    "16-bit floats": r"attention_.*_bf16(_expanded)?|attention_4d_gqa_with_past_and_present_fp16(_expanded)?"
    r"|castlike_FLOAT_to_BFLOAT16(_expanded)?",
    "8- and 4-bit floats": r"castlike_.*FLOAT(8|4E).*",
    "Dropout is that of inference": r"training_dropout(_default)?(_mask)?",
    "strings": r"equal_string.*",
    # onnxruntime, whose results the executor has, takes the rounded length here; ONNX's reference does not
    "Resize": r"resize_downsample_scales_(linear|cubic)_align_corners",
    "Scan before opset 9": r"scan_sum",
}
PASSED_AT_LEAST = 1200  # 1,237 of the 1,316 selected with onnx 1.23


@cache
def cases():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = onnx.backend.test.loader.load_node_model_tests()
    chosen = {}
    for test in tests:
        imports = {item.domain: item.version for item in test.model.opset_import}
        if set(imports) <= {"", "ai.onnx"} and max(imports.values()) <= 25 and not unsupported_operators(test.model):
            chosen[test.name.removeprefix("test_")] = test
    return chosen


def known(name):
    return any(re.fullmatch(pattern, name) for pattern in KNOWN.values())


def converted(value, dtype):
    proto = value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value))
    return torch_tensor(proto, dtype)


def failure(test):
    """None when every data set of a test comes out right, else what is wrong."""
    values = [*test.model.graph.input, *test.model.graph.output]
    double = any(value.type.tensor_type.elem_type == TensorProto.DOUBLE for value in values)
    dtype = torch.float64 if double else torch.float32
    try:
        executor = Executor(test.model, dtype=dtype)
        for inputs, outputs in test.data_sets:
            given = {v.name: converted(a, dtype) for v, a in zip(test.model.graph.input, inputs, strict=False)}
            results = executor.run(given)
            for name, output in zip(executor.outputs, outputs, strict=True):
                expected = converted(output, torch.float64).double().numpy()
                ours = results[name].detach().double().numpy()
                assert ours.shape == expected.shape
                np.testing.assert_allclose(ours, expected, rtol=test.rtol, atol=test.atol)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()[:300]}"
    return None


def test_onnx_node_tests():
    failures = {name: text for name, test in cases().items() if not known(name) and (text := failure(test))}
    assert not failures, "\n".join(f"{name}: {text}" for name, text in failures.items())
    assert sum(not known(name) for name in cases()) >= PASSED_AT_LEAST


def test_known_failures_fail():
    passing = [name for name, test in cases().items() if known(name) and failure(test) is None]
    assert not passing, f"listed as failing, but they pass: {passing}"


@pytest.mark.parametrize("reason", KNOWN)
def test_each_known_failure_exists(reason):
    assert any(re.fullmatch(KNOWN[reason], name) for name in cases())
