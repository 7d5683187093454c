"""What only a CUDA device can show: the executor, curvature and verification there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from amq_onnx.errors import ProviderError
from amq_onnx.executor.interpreter import Executor
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import open_data
from amq_onnx.model.file import read_model, write_model
from amq_onnx.pipeline import quantize
from amq_onnx.rewriting import prepare
from amq_onnx.runtime.verification import verify

MODELS = Path(__file__).parent.parent / "models"
NETWORKS = ["resnet", "inception", "squeezenext", "transformer", "lstm"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
]


@pytest.fixture(params=NETWORKS)
def path(request):
    return MODELS / f"digits_{request.param}.onnx"


def data(path, kind):
    return open_data(f"{MODELS / 'digits.py'}:{kind}", read_model(path))


def verified(reference, written, provider):
    """Skips, with the reason, where the provider isn't installed or doesn't start."""
    try:
        return verify(reference, written, data(reference, "test"), provider=provider)
    except ProviderError as error:
        pytest.skip(str(error))


@pytest.fixture
def written(path, tmp_path):
    """The network at a fifth of its bytes."""
    result = quantize(path, data(path, "calibration"), size=0.2, evaluation=data(path, "test"), tune="none")
    write_model(result.model, tmp_path / "quantized.onnx")
    return tmp_path / "quantized.onnx", result


def test_the_executor_computes_the_same_on_both_devices(path):
    model = read_model(path)
    image = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    on_cpu = Executor(model).run({"image": image})["logits"]
    on_gpu = Executor(model, device="cuda").run({"image": image.cuda()})["logits"]
    assert on_gpu.device.type == "cuda"
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-3, atol=1e-3)


def test_sensitivity_agrees_within_its_standard_errors(path):
    prepared = prepare(read_model(path))
    one, other = (
        measure_sensitivity(prepared, data(path, "calibration"), [4], [8], SensitivityOptions(device=device))
        for device in ("cpu", "cuda")
    )
    for first, second in ((one.weights, other.weights), (one.activations, other.activations)):
        assert first.keys() == second.keys()
        for name, row in first.items():
            spread = np.hypot(row.trace_error, second[name].trace_error)
            assert abs(row.trace - second[name].trace) <= 4 * spread + 0.02 * abs(row.trace)
    for name, expected in one.expected_inputs.items():
        np.testing.assert_allclose(other.expected_inputs[name], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_verification_runs_on_the_provider_that_was_asked_for(provider, path):
    result = verified(path, path, provider)
    assert result.provider == provider
    assert result.drop == 0


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_the_written_file_scores_there_as_on_the_cpu(provider, path, written):
    file, on_cpu = written
    result = verified(path, file, provider)
    assert abs(result.quantized_score - on_cpu.verification.quantized_score) <= 0.006  # three images of 500
