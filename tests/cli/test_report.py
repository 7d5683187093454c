"""amq quantize --report: when it is written, and what it takes from the command line."""

import json
import sys
from pathlib import Path

import pytest

from cli.networks import FAST, listing


@pytest.fixture
def page(tmp_path):
    return tmp_path / "report.html"


def test_the_report_is_written_beside_the_file_and_names_the_command(amq, case, tmp_path, page, read_json):
    out, summary = tmp_path / "o.onnx", tmp_path / "s.json"
    asked = ["--size", "0.3", "--data", case.data, "--report", page, "--json", summary, *FAST]
    ran = amq("quantize", case.model, "-o", out, *asked)
    assert ran.code == 0, ran.err
    assert set(listing(tmp_path)) == {Path("o.onnx"), Path("report.html"), Path("s.json")}
    text = page.read_text(encoding="utf-8")
    assert f"<span>{case.model}</span> <span>-o</span> <span>{out}</span> <span>--size</span> <span>0.3</span>" in text
    assert "<h1>model.onnx</h1>" in text
    assert f"{read_json(summary)['bytes']:,} bytes" in text
    # The terminal says the same in short.
    said = [line for line in ran.out.splitlines() if line.startswith(("frontier: ", "loss of each site alone"))]
    assert len(said) == 2
    assert said[1].removeprefix("loss of each") in text
    assert f"the report is in {page}" in ran.out


def test_a_report_changes_nothing_else(amq, case, tmp_path, page):
    files = []
    for number, more in enumerate(([], ["--report", page])):
        out = tmp_path / f"{number}.onnx"
        ran = amq("quantize", case.model, "-o", out, "--size", "0.3", "--data", case.data, *more, *FAST)
        assert ran.code == 0, ran.err
        files.append(out.read_bytes())
    assert files[0] == files[1]


def test_a_report_without_data_is_the_same_each_time(amq, case, tmp_path, page):
    pages = []
    for _ in range(2):
        asked = ["--size", "0.3", "--from-sensitivity", case.table, "--dry-run", "--report", page]
        assert amq("quantize", case.model, *asked).code == 0
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    assert b"no calibration data: give --data" in pages[0]


def test_a_gate_that_fails_is_in_the_report(amq, case, tmp_path, page):
    asked = ["--size", "0.3", "--from-sensitivity", case.table, "--data", case.data, "--metric", "cosine"]
    ran = amq("quantize", case.model, "--dry-run", *asked, "--max-drop", "0", "--report", page)
    assert ran.code == 1
    assert "more than --max-drop 0 allows</p>" in page.read_text(encoding="utf-8")


def test_random_data_are_a_remark_in_the_report(amq, case, page):
    ran = amq("quantize", case.model, "--dry-run", "--size", "0.3", "--random", "6", "--report", page, *FAST)
    assert ran.code == 0, ran.err
    assert "<p class='remark'>measured on random inputs" in page.read_text(encoding="utf-8")


def test_without_plotly_nothing_is_begun(amq, case, tmp_path, page, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    ran = amq("quantize", case.model, "--dry-run", "--size", "0.3", "--data", case.data, "--report", page)
    assert ran.code == 2
    assert ran.err.splitlines() == [
        "amq quantize: --report needs plotly, which is not installed: pip install 'amq-onnx[report]'"
    ]
    assert listing(tmp_path) == {}
    assert amq("quantize", case.model, "--dry-run", "--size", "0.3", "--from-sensitivity", case.table).code == 0


def test_the_summary_is_the_same_with_a_report(amq, case, tmp_path, page):
    found = []
    for more in ([], ["--report", page]):
        summary = tmp_path / "s.json"
        asked = ["--size", "0.3", "--from-sensitivity", case.table, "--dry-run", "--json", summary]
        assert amq("quantize", case.model, *asked, *more).code == 0
        found.append(json.loads(summary.read_text()))
    assert found[0] == found[1]
