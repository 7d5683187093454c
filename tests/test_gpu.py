"""What only a CUDA device can show: curvature, the executor and verification there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amq_onnx.executor.interpreter import Executor
from amq_onnx.measurement import SensitivityOptions, measure_sensitivity
from amq_onnx.model.data import open_data
from amq_onnx.model.file import read_model
from amq_onnx.rewriting import prepare
from amq_onnx.runtime.verification import verify

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "digits_resnet.onnx"

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


@pytest.fixture
def model():
    return read_model(MODEL)


def test_the_executor_computes_the_same_on_both_devices(model):
    image = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    on_cpu = Executor(model).run({"image": image})["logits"]
    on_gpu = Executor(model, device="cuda").run({"image": image.cuda()})["logits"]
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)


def test_traces_agree_within_their_standard_errors(model):
    prepared = prepare(model)
    data = open_data(f"{MODELS / 'digits.py'}:calibration", model)
    tables = [
        measure_sensitivity(prepared, data, [4], [8], SensitivityOptions(device=device)) for device in ("cpu", "cuda")
    ]
    for name, row in tables[0].weights.items():
        other = tables[1].weights[name]
        spread = np.hypot(row.trace_error, other.trace_error)
        assert abs(row.trace - other.trace) <= 4 * spread + 0.02 * row.trace


def test_verification_runs_on_the_cuda_provider(model):
    data = open_data(f"{MODELS / 'digits.py'}:test", model)
    result = verify(MODEL, MODEL, data, provider="cuda")
    assert result.provider == "cuda"
    assert result.drop == 0
