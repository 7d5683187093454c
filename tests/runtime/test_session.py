"""Sessions run on the provider that was asked for, or not at all."""

import itertools
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from cli.networks import build, conv_net, images, node, noise, save

from amq_onnx.errors import ModelError, ProviderError, UsageError
from amq_onnx.runtime import session as sessions
from amq_onnx.runtime.session import exact_options, open_session, require_one_runtime


@pytest.fixture
def path(tmp_path):
    return save(conv_net(), tmp_path / "m.onnx")


def test_runs_on_the_cpu(path):
    opened = open_session(path)
    assert opened.get_providers() == ["CPUExecutionProvider"]
    (scores,) = opened.run(None, {"image": images(3)})
    assert scores.shape == (3, 10)
    assert open_session(path.read_bytes()).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("fallback", [["CPUExecutionProvider"], []])
def test_a_silent_fallback_is_an_error(path, monkeypatch, fallback):
    asked = {}

    class Session:
        def __init__(self, model, settings, providers, **more):
            asked.update(more, providers=providers)

        def get_providers(self):
            return [*fallback, "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(ProviderError, match=r"'cuda'.*CPUExecutionProvider") as raised:
        open_session(path, "cuda")
    assert raised.value.exit_code == 4
    assert asked["providers"] == ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert asked["enable_fallback"] == 0


def test_a_session_that_did_start_is_given_back(path, monkeypatch):
    started = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: started)
    assert open_session(path, "cuda") is started


@pytest.mark.parametrize("error", [RuntimeError, ValueError])
def test_a_provider_that_fails_to_start_is_an_error_of_the_provider(path, monkeypatch, error):
    def fail(*_, **__):
        raise error("no libnvinfer\nsecond line")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    with pytest.raises(ProviderError, match=r"'tensorrt' didn't start: no libnvinfer$"):
        open_session(path, "tensorrt")


def test_a_provider_that_is_not_installed(path, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(ProviderError, match="'openvino' isn't in the installed onnxruntime"):
        open_session(path, "openvino")


def test_an_unknown_provider(path):
    with pytest.raises(UsageError, match=r"'gpu' is unknown.*cuda"):
        open_session(path, "gpu")


def test_a_model_that_the_runtime_refuses_is_one_line(tmp_path):
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(save(conv_net(), tmp_path / "m.onnx").read_bytes()[:5000])
    for model in (cut, cut.read_bytes()):
        with pytest.raises(ModelError, match=r"^onnxruntime refuses [^\n]*$"):
            open_session(model)


def test_session_options_arrive(path):
    opened = open_session(path, threads=1, options={"session.intra_op.allow_spinning": "0"}, level="none")
    settings = opened.get_session_options()
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert settings.intra_op_num_threads == 1
    assert settings.graph_optimization_level == onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL


@pytest.mark.parametrize("entry", [("", "1"), ("k" * 2000, "1"), ("key", "v" * 10_000)])
def test_session_options_that_the_runtime_refuses(path, entry):
    with pytest.raises(UsageError, match="session option"):
        open_session(path, options=dict([entry]))


def installed(*names):
    def version(name):
        if name in names:
            return "1.20.0"
        raise metadata.PackageNotFoundError(name)

    return version


def test_both_packages_installed_are_an_error(path, monkeypatch):
    monkeypatch.setattr(metadata, "version", installed("onnxruntime", "onnxruntime-gpu"))
    with pytest.raises(UsageError, match=r"onnxruntime and onnxruntime-gpu are both installed.*uninstall"):
        open_session(path)


@pytest.mark.parametrize("names", [[], ["onnxruntime"], ["onnxruntime-gpu"]])
def test_one_package_or_an_own_build_is_fine(monkeypatch, names):
    monkeypatch.setattr(metadata, "version", installed(*names))
    require_one_runtime()


# 8-bit weights on CPUs without VNNI.


def weights_of(dtype, layers=1, at_load=False):
    """Layers that read one weight, as codes or dequantized at load."""
    dequantize = (
        [node("Cast", "w", "c", to=1), node("Mul", "c s", "d")] if at_load else [node("DequantizeLinear", "w s", "d")]
    )
    names = ["x", *(f"y{index}" for index in range(layers))]
    nodes = [node("MatMul", f"{one} d", other) for one, other in itertools.pairwise(names)]
    constants = {"w": np.ones((4, 4), dtype), "s": np.float32(0.1)}
    return build([*dequantize, *nodes], {"x": [1, 4]}, {names[-1]: [1, 4]}, constants)


@pytest.mark.parametrize(
    ("flags", "machine", "needed"),
    [
        ("flags : sse2 avx2", "x86_64", True),
        ("flags : sse2 avx2 avx512f avx512bw", "AMD64", True),
        ("flags : avx2 avx512_vnni", "x86_64", False),
        ("flags : avx2 avx_vnni", "x86_64", False),
        ("Features : asimd", "aarch64", False),
    ],
)
def test_exact_products_where_the_cpu_adds_in_16_bits(monkeypatch, tmp_path, flags, machine, needed):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(flags)
    monkeypatch.setattr(sessions, "Path", lambda _: cpuinfo)
    monkeypatch.setattr(sessions.platform, "machine", lambda: machine)
    sessions.adds_in_16_bits.cache_clear()
    try:
        wanted = {"session.x64quantprecision": "1"} if needed else {}
        assert exact_options(weights_of(np.int8), "cpu") == wanted
        assert exact_options(weights_of(np.int8), "cuda") == {}
        assert exact_options(weights_of(np.uint8), "cpu") == {}
        assert exact_options(weights_of(np.int8, layers=2), "cpu") == {}  # which onnxruntime refuses
        assert exact_options(weights_of(np.int8, at_load=True), "cpu") == {}
    finally:
        sessions.adds_in_16_bits.cache_clear()


def test_cpu_flags_that_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr(sessions, "Path", lambda _: tmp_path / "gone")
    monkeypatch.setattr(sessions.platform, "machine", lambda: "x86_64")
    sessions.adds_in_16_bits.cache_clear()
    try:
        assert not sessions.adds_in_16_bits()
    finally:
        sessions.adds_in_16_bits.cache_clear()


@pytest.mark.parametrize(("bits", "needed"), [(8, True), (7, False), (4, False)])
def test_only_files_with_8_bit_weights_need_exact_products(tmp_path, monkeypatch, bits, needed):
    from amq_onnx.model.random_data import random_data
    from amq_onnx.pipeline import quantize

    monkeypatch.setattr(sessions, "adds_in_16_bits", lambda: True)
    model = build([node("MatMul", "x w", "y")], {"x": ["n", 32]}, {"y": ["n", 96]}, {"w": noise(1, 32, 96)})
    path = save(model, tmp_path / "m.onnx")
    result = quantize(path, random_data(model, 8, 0), size=0.9, bits=[bits])
    assert bool(exact_options(result.model, "cpu")) == needed
    assert bool(result.verification.options) == needed
    assert bool(result.verification.notes) == needed
    assert onnx.load_from_string(result.model.SerializeToString()).graph.output[0].name == "y"
