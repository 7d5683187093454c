"""amq verify."""

import pytest

from cli import networks
from cli.networks import save


@pytest.fixture
def quantized(amq, case, tmp_path):
    out = tmp_path / "quantized.onnx"
    assert amq("quantize", case.model, "-o", out, "--size", "0.5", "--from-sensitivity", case.table).code == 0
    return out


def test_verify(amq, case, tmp_path, quantized, read_json):
    summary = tmp_path / "v.json"
    ran = amq("verify", case.model, quantized, "--data", case.data, "--json", summary, "--max-drop", "0.2")
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert (found["metric"], found["provider"], found["samples"]) == ("top1", "cpu", 32)
    assert (found["float_bytes"], found["quantized_bytes"]) == (case.bytes, quantized.stat().st_size)
    assert 0 < found["outputs"]["scores"]["mean"] < found["outputs"]["scores"]["largest"] < 1
    assert found["latency_ratio"] == pytest.approx(found["latency"]["second"] / found["latency"]["first"])
    assert "top1" in ran.out


def test_verify_of_a_model_with_itself(amq, case, tmp_path, read_json):
    summary = tmp_path / "v.json"
    asked = ["--data", case.unlabelled, "--json", summary, "--max-drop", "0", "--limit", "7", "--threads", "1"]
    ran = amq("verify", case.model, case.model, *asked)
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert (found["metric"], found["float_score"], found["drop"], found["samples"]) == ("agreement", 1, 0, 7)
    assert found["outputs"]["scores"] == {"largest": 0, "mean": 0, "sqnr": None, "divergence": 0}


def test_verify_gate(amq, case, tmp_path, quantized):
    summary = tmp_path / "v.json"
    asked = ["--data", case.data, "--metric", "cosine", "--json", summary]
    ran = amq("verify", case.model, quantized, *asked, "--max-drop", "1e-9")
    assert ran.code == 1
    assert ran.err.splitlines()[-1].startswith("amq verify: cosine fell by")
    assert summary.is_file()


def test_verify_hands_on_session_options(amq, case, tmp_path, quantized, read_json):
    summary = tmp_path / "v.json"
    asked = ["--data", case.data, "--json", summary, "--session-option", "session.intra_op.allow_spinning=0"]
    assert amq("verify", case.model, quantized, *asked).code == 0
    assert read_json(summary)["options"]["session.intra_op.allow_spinning"] == "0"


def test_verify_refuses_another_model(amq, case, tmp_path):
    other = save(networks.two_inputs(), tmp_path / "other.onnx")
    ran = amq("verify", case.model, other, "--data", case.data)
    assert ran.code == 2
    assert str(other) in ran.err
    assert len([line for line in ran.err.splitlines() if not line.endswith(" ...")]) == 1


@pytest.mark.parametrize("provider", ["tensorrt", "openvino"])
def test_verify_on_a_missing_provider(amq, case, tmp_path, provider):
    ran = amq("verify", case.model, case.model, "--data", case.data, "--provider", provider)
    assert ran.code == 4
    assert len(ran.err.splitlines()) == 1
    assert f"'{provider}'" in ran.err
    assert ran.out == ""
