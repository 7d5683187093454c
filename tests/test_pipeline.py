"""quantize(), from a float file to the written one."""

import numpy as np
import pytest
from cli.networks import conv_net, images, save
from quantized_files import FAST, quantized, relative_noise

import amq_onnx
from amq_onnx.errors import BudgetError, DataError, GateError, UsageError
from amq_onnx.model.file import model_bytes
from amq_onnx.model.random_data import random_data
from amq_onnx.pipeline import quantize
from amq_onnx.rewriting import prepare


def test_result_and_file_agree(tmp_path):
    model = conv_net()
    result = quantized(model, random_data(model, 16, 0), tmp_path)
    written = tmp_path / "o.onnx"
    assert written.read_bytes() == model_bytes(result.model)
    assert result.bytes == result.predicted_bytes == written.stat().st_size <= result.budget
    assert result.budget == result.float_bytes // 2
    assert set(result.plan.weights) == {"w1", "w2", "w3"}
    assert sum(result.shares.values()) == pytest.approx(1)
    assert result.verification.quantized_bytes == result.bytes
    assert result.oldest_runtime == "1.14"
    assert relative_noise(model, written, {"image": images()}, "scores") < 0.01


def test_the_gate_of_a_drop(tmp_path):
    model = conv_net()
    found = quantized(model, random_data(model, 16, 0), tmp_path, size=None, max_drop=0.05, metric="cosine")
    assert found.verification.drop <= 0.05
    assert found.bytes == (tmp_path / "o.onnx").stat().st_size == found.predicted_bytes
    assert found.budget is None
    (tmp_path / "o.onnx").unlink()
    with pytest.raises(GateError, match="no file"):
        quantized(model, random_data(model, 16, 0), tmp_path, size=None, max_drop=-0.5, metric="cosine")
    assert not (tmp_path / "o.onnx").exists()
    with pytest.raises(GateError, match="cosine fell by"):
        quantized(model, random_data(model, 16, 0), tmp_path, max_drop=0, metric="cosine")
    with pytest.raises(UsageError, match=r"--size .*--max-drop"):
        quantized(model, random_data(model, 16, 0), tmp_path, size=None)


def test_nothing_is_written_without_an_output(tmp_path, monkeypatch):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    quantize(path, random_data(model, 8, 0), size="50%", options=FAST, tune="none")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_calibration_data_reader_of_onnxruntime(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.feeds = iter([{"image": images()[start : start + 4]} for start in range(0, 32, 4)])

        def get_next(self):
            return next(self.feeds, None)

    model = conv_net()
    np.savez(tmp_path / "data.npz", image=images())
    first = quantized(model, Reader(), tmp_path)
    second = quantized(model, str(tmp_path / "data.npz"), tmp_path)
    assert model_bytes(first.model) == model_bytes(second.model)
    assert first.sensitivity == second.sensitivity
    assert first.verification.samples == 32


def test_batches_in_a_list_and_a_path(tmp_path):
    model = conv_net()
    np.savez(tmp_path / "data.npz", image=images())
    batches = [{"image": images()[start : start + 4]} for start in range(0, 32, 4)]
    first = quantized(model, batches, tmp_path)
    second = quantized(model, tmp_path / "data.npz", tmp_path)
    assert model_bytes(first.model) == model_bytes(second.model)


@pytest.mark.parametrize("data", [{"image": images()}, images(), 5])
def test_data_of_another_kind_are_refused(tmp_path, data):
    with pytest.raises(UsageError, match=r"data can't be a .* give a path"):
        quantized(conv_net(), data, tmp_path)


def test_an_exhausted_reader(tmp_path):
    class Empty:
        def get_next(self):
            return None

    with pytest.raises(DataError, match="data reader holds no samples"):
        quantized(conv_net(), Empty(), tmp_path)
    assert not (tmp_path / "o.onnx").exists()


def test_progress_is_told(tmp_path):
    model = conv_net()
    seen = []
    quantized(model, random_data(model, 8, 0), tmp_path, progress=lambda *step: seen.append(step))
    stages = list(dict.fromkeys(what.split(",")[0] for what, _, _ in seen))
    assert stages[:2] == ["ranges of activations", "scales of weights"]
    assert stages[-1] == "verification"
    assert "loss to second order" in stages


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"size": "4"}, UsageError, "--size"),
        ({"size": 4}, UsageError, "--size"),
        ({"size": 1.5}, UsageError, "--size"),
        ({"size": "100B"}, BudgetError, "smallest"),
        ({"data": None}, UsageError, "calibration data"),
        ({"activation_bits": (4, 8)}, UsageError, "--activation-average"),
        ({"activation_bits": (4, 8), "activation_average": 3}, BudgetError, "4.00"),
        ({"activation_bits": None, "activation_average": 5}, UsageError, "float"),
        ({"exclude": ("nosuch",)}, UsageError, "nosuch"),
        ({"opset": 12}, UsageError, "opset"),
        ({"metric": "top1"}, DataError, "labels"),
        ({"output": "gone/o.onnx"}, UsageError, "gone"),
    ],
)
def test_errors_write_nothing(tmp_path, more, error, said):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    asked = {"data": random_data(model, 8, 0), "size": 0.5, "output": tmp_path / "o.onnx", "options": FAST} | more
    if more.get("output"):
        asked["output"] = tmp_path / more["output"]
    with pytest.raises(error, match=said):
        quantize(path, asked.pop("data"), **asked)
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_public_names():
    assert amq_onnx.quantize is quantize
    assert set(dir(amq_onnx)) >= {"quantize", "verify", "Plan", "Sensitivity", "AMQError"}
    assert all(hasattr(amq_onnx, name) for name in amq_onnx.__all__)
    with pytest.raises(AttributeError, match="nosuch"):
        _ = amq_onnx.nosuch


def test_the_input_model_is_untouched(tmp_path):
    model = conv_net()
    path = save(model, tmp_path / "m.onnx")
    before = path.read_bytes()
    quantized(model, random_data(model, 8, 0), tmp_path)
    assert path.read_bytes() == before


def test_sensitivity_without_sites_of_activations(tmp_path):
    """Every activation excluded is the same as float activations."""
    model = conv_net()
    names = "|".join(site.name for site in prepare(model).sites.activations)
    data = random_data(model, 8, 0)
    first = quantized(model, data, tmp_path, exclude=[f"^({names})$"])
    second = quantized(model, data, tmp_path, activation_bits=None)
    assert first.plan.activations == second.plan.activations == {}
    assert model_bytes(first.model) == model_bytes(second.model)
