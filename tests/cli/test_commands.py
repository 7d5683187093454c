"""amq inspect, sensitivity, frontier and apply, and what a bare `amq` does."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from amq_onnx.cli.main import main
from cli import networks
from cli.networks import FAST, listing

# inspect


def test_inspect_says_what_can_be_quantized(amq, case, tmp_path, read_json):
    summary = tmp_path / "i.json"
    ran = amq("inspect", case.model, "--json", summary)
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert found["bytes"] == case.bytes
    assert (found["opset"], found["written_opset"]) == (18, 18)
    assert found["inputs"] == {"image": ["float32", [None, 3, 8, 8]]}
    assert found["loss"]["scores"].startswith("softmax")
    assert found["unsupported_operators"] == []
    assert {name: site["shape"] for name, site in found["weights"].items()} == {
        "w1": [16, 3, 3, 3],
        "w2": [32, 16, 3, 3],
        "w3": [10, 32],
    }
    assert found["weights"]["w2"]["operators"] == ["Conv"]
    assert set(found["activations"]) >= {"image", "r1"}
    sizes = {int(bits): size for bits, size in found["weights"]["w2"]["bytes"].items()}
    assert list(sizes) == list(range(1, 9))
    assert sizes[2] < sizes[4] < sizes[8]
    assert 4608 * 4 // 8 < sizes[4] < 4608 * 4 // 8 + 400
    for name in ("w1", "w2", "w3", "image"):
        assert name in ran.out
    assert "\x1b" not in ran.out
    assert set(listing(tmp_path)) == {summary.relative_to(tmp_path)}


def test_inspect_with_exclude_and_opset(amq, case, tmp_path, read_json):
    summary = tmp_path / "i.json"
    assert amq("inspect", case.model, "--exclude", "w2", "--opset", "21", "--json", summary).code == 0
    found = read_json(summary)
    assert set(found["weights"]) == {"w1", "w3"}
    assert "w2" in found["left_float"]
    assert (found["opset"], found["written_opset"], found["oldest_onnxruntime"]) == (18, 21, "1.18")


def test_inspect_works_on_the_shipped_model(amq):
    ran = amq("inspect", "models/digits_resnet.onnx")
    assert ran.code == 0, ran.err
    assert "16 weights" in ran.out


# sensitivity and frontier


def test_sensitivity_table(amq, case, read_json, tmp_path):
    table = read_json(case.table)
    assert set(table["weights"]) == {"w1", "w2", "w3"}
    for row in table["weights"].values():
        assert row["trace"] is None
        losses = [row["loss"][str(bits)][0] for bits in range(2, 9)]
        assert losses[0] > losses[-1] > 0
        errors = [row["squared_error"][str(bits)] for bits in range(2, 9)]
        assert errors == sorted(errors, reverse=True)
    for row in table["activations"].values():
        assert set(row["loss"]) == set("45678")
    assert table["rounding"] == "nearest"  # as the file is that is made from it without data
    learned = tmp_path / "learned.json"
    ran = amq("sensitivity", case.model, "--data", case.data, "-o", learned, "--rounding", "learned", *FAST)
    assert ran.code == 0, ran.err
    assert read_json(learned)["rounding"] == "learned"
    ran = amq("sensitivity", case.model, "--data", case.data, *FAST)
    assert ran.code == 0, ran.err
    assert "w2" in ran.out
    assert "wrote" not in ran.out


def test_sensitivity_of_the_widths_asked_for(amq, case, read_json, tmp_path):
    out = tmp_path / "s.json"
    asked = ["--bits", "1,3", "--activation-bits", "float", "--exclude", "w1", "--ranges", "minmax"]
    assert amq("sensitivity", case.model, "-o", out, "--data", case.data, *asked, *FAST).code == 0
    table = read_json(out)
    assert set(table["weights"]) == {"w2", "w3"}
    assert set(table["weights"]["w2"]["squared_error"]) == {"1", "3"}
    assert table["activations"] == {}
    assert table["ranges"] == "minmax"
    assert "w1" in table["left_float"]


def test_frontier_points_are_what_quantize_gives(amq, case, tmp_path, read_json):
    points_file = tmp_path / "f.json"
    ran = amq("frontier", case.model, case.table, "--json", points_file)
    assert ran.code == 0, ran.err
    points = read_json(points_file)
    sizes = [point["bytes"] for point in points]
    perturbations = [point["perturbation"] for point in points]
    assert len(points) >= 8  # of 343 plans of three weights
    assert sizes == sorted(set(sizes))
    assert perturbations == sorted(set(perturbations), reverse=True)
    assert f"{sizes[0]:,}" in ran.out
    assert f"{sizes[-1]:,}" in ran.out
    summary = tmp_path / "s.json"
    for point in (points[0], points[len(points) // 2], points[-1]):
        # A file may take some hundred bytes more or less than its point says (shared tables and constants).
        asked = ["--size", f"{point['bytes'] + 400}B", "--from-sensitivity", case.table, "--json", summary]
        assert amq("quantize", case.model, "--dry-run", *asked).code == 0
        assert read_json(summary)["perturbation"] <= point["perturbation"]


def test_frontier_of_fewer_widths(amq, case, tmp_path, read_json):
    points_file = tmp_path / "f.json"
    asked = ["--bits", "4,8", "--points", "50", "--json", points_file, "--exclude", "w1"]
    assert amq("frontier", case.model, case.table, *asked).code == 0
    widths = {bits for point in read_json(points_file) for bits in point["weights"].values()}
    assert widths == {4, 8}
    assert all("w1" not in point["weights"] for point in read_json(points_file))


# apply


def test_an_edited_plan_gives_the_edited_widths(amq, case, tmp_path, read_json):
    plan = read_json(case.plan)
    plan["weights"] = {"w1": 8, "w2": 3, "w3": 5}
    plan["activations"]["r1"]["bits"] = 4
    edited, out = tmp_path / "plan.json", tmp_path / "o.onnx"
    edited.write_text(json.dumps(plan))
    ran = amq("apply", case.model, edited, "-o", out)
    assert ran.code == 0, ran.err
    assert f"{out.stat().st_size:,}" in ran.out
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(out).graph.initializer}
    packed = {"w0": 432 * 8 // 8, "w1": 4608 * 3 // 8, "w2": 320 * 5 // 8}
    for key, size in packed.items():
        pieces = [array.nbytes for name, array in stored.items() if name in (f"q{key}", *(f"q{key}{p}" for p in "klm"))]
        assert sum(pieces) == size
    # Four bits of an activation: a Clip to 0..15.
    clips = [item for item in onnx.load(out).graph.node if item.op_type == "Clip"]
    assert len(clips) == 1
    assert {int(stored[name]) for name in clips[0].input[1:]} == {0, 15}


def test_a_plan_of_part_of_the_sites(amq, case, tmp_path, read_json):
    plan = read_json(case.plan)
    del plan["weights"]["w2"]
    plan["activations"] = {}
    edited, out = tmp_path / "plan.json", tmp_path / "o.onnx"
    edited.write_text(json.dumps(plan))
    ran = amq("apply", case.model, edited, "-o", out)
    assert ran.code == 0, ran.err
    floats = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer if t.data_type == 1}
    np.testing.assert_array_equal(floats["w2"], networks.conv_constants()["w2"])
    assert {"w1", "w3"}.isdisjoint(floats)


OF_THE_PLAN = (["--exclude", "w2"], ["--no-input-weighting"], ["--granularity", "channel"], ["--equalize"])


@pytest.mark.parametrize("asked", [[], ["--opset", "21"], ["--keep-metadata"], *OF_THE_PLAN], ids=str)
def test_a_saved_plan_gives_the_file_it_came_from(amq, case, tmp_path, asked):
    first, plan, second = tmp_path / "1.onnx", tmp_path / "p.json", tmp_path / "2.onnx"
    options = ["--size", "0.95", "--bits", "2-7", "--data", case.data, "--save-plan", plan, *FAST]
    assert amq("quantize", case.model, "-o", first, *options, *asked).code == 0
    again = [] if asked in OF_THE_PLAN else asked
    assert ("--no-input-weighting" in asked) != bool(json.loads(plan.read_text())["scales"])
    ran = amq("apply", case.model, plan, "-o", second, *again)
    assert ran.code == 0, ran.err
    assert first.read_bytes() == second.read_bytes()
    assert ("--equalize" in asked) == json.loads(plan.read_text())["equalized"]


# The process itself.


@pytest.mark.parametrize("command", [[], ["quantize"], ["inspect"], ["verify"]])
def test_help_is_for_all(capfd, command):
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    said = capfd.readouterr()
    assert said.out.startswith("usage: amq")
    assert said.err == ""


def python(code):
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.split()


HEAVY = "print(*[name for name in ('torch', 'onnxruntime', 'onnx', 'onnx_graphsurgeon') if name in sys.modules])"


def test_importing_the_package_imports_nothing_heavy():
    assert python(f"import sys, amq_onnx, amq_onnx.cli.main; {HEAVY}") == []


def test_help_imports_nothing_heavy():
    code = f"""
import sys, contextlib, io
from amq_onnx.cli.main import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["--help"])
{HEAVY}
"""
    assert python(code) == []


def test_as_a_program(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "amq_onnx", "inspect", "gone.onnx"],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=tmp_path,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "amq inspect: there is no model file 'gone.onnx'\n"
