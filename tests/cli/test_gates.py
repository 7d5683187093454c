"""When amq quantize ends with another code than 0: drops of the metric, budgets, providers."""

import re

import pytest

from cli.networks import listing


@pytest.mark.parametrize("metric", ["top1", "top5", "agreement", "cosine", "sqnr", "script"])
def test_every_metric(amq, case, tmp_path, read_json, metric):
    script = tmp_path / "metrics.py"
    script.write_text("def score(outputs, labels):\n    return float(outputs['scores'].shape[0] + len(labels))\n")
    name = f"{script}:score" if metric == "script" else metric
    summary = tmp_path / "s.json"
    asked = ["--from-sensitivity", case.table, "--data", case.data, "--metric", name, "--json", summary]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.5", *asked)
    assert ran.code == 0, ran.err
    found = read_json(summary)["verification"]
    assert found["metric"] == name
    match metric:
        case "script":
            assert found["float_score"] == found["quantized_score"] == 64
        case "sqnr":
            assert found["float_score"] is None  # infinite
            assert 15 < found["quantized_score"] < 80
        case _:
            assert found["float_score"] == pytest.approx(1)
            assert 0.9 < found["quantized_score"] <= 1


def test_the_gate_fails_with_1_and_the_file_is_there(amq, case, tmp_path):
    out, plan, summary = tmp_path / "o.onnx", tmp_path / "p.json", tmp_path / "s.json"
    asked = ["--size", "0.3", "--from-sensitivity", case.table, "--data", case.data, "--metric", "cosine"]
    asked += ["--save-plan", plan, "--json", summary]
    ran = amq("quantize", case.model, "-o", out, *asked, "--max-drop", "0")
    assert ran.code == 1
    assert "cosine" in ran.err.splitlines()[-1]
    assert "--max-drop" in ran.err.splitlines()[-1]
    assert out.is_file()
    assert plan.is_file()
    assert summary.is_file()
    assert amq("quantize", case.model, "-o", out, *asked, "--max-drop", "0.5").code == 0


def test_without_a_size_the_smallest_file_within_the_drop_is_searched_for(amq, case, tmp_path, read_json):
    out, summary, plan = tmp_path / "o.onnx", tmp_path / "s.json", tmp_path / "p.json"
    asked = ["--from-sensitivity", case.table, "--data", case.data, "--metric", "cosine", "--json", summary]
    ran = amq("quantize", case.model, "-o", out, *asked, "--save-plan", plan, "--max-drop", "0.005")
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert out.stat().st_size == found["bytes"] == found["verification"]["quantized_bytes"]
    assert found["verification"]["drop"] <= 0.005
    assert found["budget_bytes"] is None
    trials = {trial["bytes"]: trial["drop"] for trial in found["trials"]}
    assert found["bytes"] == min(size for size, drop in trials.items() if drop <= 0.005)
    assert max(trials.values()) > 0.005
    assert len(trials) <= 16
    assert f"searched {len(trials)} files" in ran.out
    # The plan is that of the file.
    again = tmp_path / "again.onnx"
    assert amq("apply", case.model, plan, "-o", again).code == 0
    assert again.read_bytes() == out.read_bytes()


def test_no_file_is_written_where_none_is_within_the_drop(amq, case, tmp_path):
    out, summary = tmp_path / "o.onnx", tmp_path / "s.json"
    asked = ["--from-sensitivity", case.table, "--data", case.data, "--metric", "cosine", "--json", summary]
    ran = amq("quantize", case.model, "-o", out, *asked, "--max-drop", "1e-12")
    assert ran.code == 1
    said = ran.err.splitlines()[-1]
    assert re.search(
        r"no file is within --max-drop 1e-12: .*best of \d+ .* bytes, cosine fell by .*nothing was w", said
    )
    assert listing(tmp_path) == {}


def test_a_drop_that_few_samples_leave_in_doubt_is_noted(amq, case, tmp_path):
    asked = ["--from-sensitivity", case.table, "--data", case.data, "--size", "0.9", "--max-drop", "0.1", "--dry-run"]
    ran = amq("quantize", case.model, *asked)
    assert ran.code == 0, ran.err
    assert re.search(
        r"note: top1 fell by 0\.0[0-9]+ .* 32 samples can't rule out more; about \d+ would settle it", ran.err
    )
    assert "drop of top1 (95 % interval)" in ran.out


def test_an_impossible_budget_names_the_smallest_size_which_then_works(amq, case, tmp_path):
    out = tmp_path / "o.onnx"
    for bits in ("2-8", "4", "8"):
        asked = ["--from-sensitivity", case.table, "--bits", bits]
        ran = amq("quantize", case.model, "-o", out, "--size", "100B", *asked)
        assert ran.code == 3
        assert len(ran.err.splitlines()) == 1
        assert not out.exists()
        least = int(re.search(r"--size (\d+)B", ran.err)[1])
        assert amq("quantize", case.model, "-o", out, "--size", f"{least - 1}B", *asked).code == 3
        ran = amq("quantize", case.model, "-o", out, "--size", f"{least}B", *asked)
        assert ran.code == 0, ran.err
        assert out.stat().st_size == least
        out.unlink()


def test_an_impossible_activation_average_names_the_smallest(amq, case, tmp_path):
    asked = ["--from-sensitivity", case.table, "--activation-bits", "4-8", "--size", "0.5"]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", *asked, "--activation-average", "3.5")
    assert ran.code == 3
    assert "4.00" in ran.err
    assert "--activation-average" in ran.err


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_a_missing_provider_is_exit_4_with_one_sentence(amq, case, tmp_path, provider):
    if provider == "cuda" and _has_cuda():
        pytest.skip("this machine has a CUDA device")
    out = tmp_path / "o.onnx"
    asked = ["--from-sensitivity", case.table, "--data", case.data, "--provider", provider]
    ran = amq("quantize", case.model, "-o", out, "--size", "0.5", *asked)
    assert ran.code == 4
    assert not out.exists()
    lines = [line for line in ran.err.splitlines() if not line.endswith(" ...")]
    assert len(lines) == 1, ran.err
    assert provider in lines[0]
    assert ran.out == ""


def _has_cuda():
    import torch

    return torch.cuda.is_available()
