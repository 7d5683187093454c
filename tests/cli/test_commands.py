"""The other commands: inspect, sensitivity, frontier, apply, verify, export, demo; and what a bare `amq` does."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from amq_onnx.cli.main import main
from cli import networks
from cli.networks import FAST, listing, save

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


# verify


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


# export

MODELS = """
import torch

def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 48), torch.nn.ReLU(), torch.nn.Linear(48, 12))

def with_example():
    return net(), (torch.zeros(1, 6),)

def number():
    return 3

def broken():
    raise RuntimeError("no weights")

class Branching(torch.nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

def branching():
    return Branching()
"""


@pytest.fixture
def networks_module(tmp_path, monkeypatch):
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "exported_networks.py").write_text(MODELS)
    (folder / "not_python.py").write_text("def (:\n")
    (folder / "fails_on_import.py").write_text("1 / 0\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "exported_networks"
    sys.modules.pop("exported_networks", None)


@pytest.mark.parametrize(
    ("callable_name", "asked", "names", "batch"),
    [
        ("net", ["--input", "features=1x6", "--output-name", "kinds"], ["features", "kinds"], None),
        ("with_example", ["--fixed-batch"], None, 1),
    ],
)
def test_export(amq, tmp_path, networks_module, callable_name, asked, names, batch):
    out = tmp_path / "e.onnx"
    ran = amq("export", f"{networks_module}:{callable_name}", "-o", out, *asked)
    assert ran.code == 0, ran.err
    model = onnx.load(out)
    onnx.checker.check_model(model, full_check=True)
    (value,) = model.graph.input
    assert names in (None, [value.name, model.graph.output[0].name])
    first = value.type.tensor_type.shape.dim[0]
    assert (first.dim_value or None) == batch
    assert model.opset_import[0].version == 18
    import exported_networks
    import torch

    features = networks.noise(1, 1 if batch else 5, 6)
    (found,) = networks.run_float(model, {value.name: features}).values()
    with torch.no_grad():
        wanted = exported_networks.net()(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    assert amq("inspect", out).code == 0


@pytest.mark.parametrize(
    ("where", "asked", "said"),
    [
        ("nosuchmodule:net", [], "nosuchmodule"),
        ("exported_networks:nosuch", [], "nosuch"),
        ("exported_networks", [], "exported_networks"),
        (":net", [], ":net"),
        ("exported_networks:net", [], "--input"),
        ("exported_networks:net", ["--input", "x=1x0"], "x=1x0"),
        ("exported_networks:net", ["--input", "6"], "'6'"),
        ("exported_networks:net", ["--input", "x=1x6", "--output-name", "a", "--output-name", "b"], "output"),
        ("exported_networks:number", ["--input", "x=1x6"], "int"),
        ("exported_networks:broken", ["--input", "x=1x6"], "no weights"),
        ("exported_networks:branching", ["--input", "x=1x6"], "export"),
        ("not_python:net", [], "not_python"),
        ("fails_on_import:net", [], "fails_on_import"),
    ],
)
def test_export_refuses(amq, tmp_path, networks_module, where, asked, said):
    before = listing(tmp_path)
    ran = amq("export", where, "-o", tmp_path / "e.onnx", *asked)
    assert ran.code == 2, ran.err
    assert len(ran.err.splitlines()) == 1, ran.err
    assert said in ran.err
    assert listing(tmp_path) == before


# demo


def test_demo(amq, tmp_path, read_json):
    """With fewer images than the shipped script gives, so that it takes seconds."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "digits_resnet.onnx").symlink_to(Path("models/digits_resnet.onnx").resolve())
    with np.load(_digits(tmp_path)) as digits:
        np.savez(models / "few.npz", **digits)
    (models / "digits.py").write_text(FEW_DIGITS)
    folder = tmp_path / "new" / "out"
    ran = amq("demo", "--models", models, "-o", folder)
    assert ran.code == 0, ran.err
    names = {"digits_resnet.quantized.onnx", "plan.json", "sensitivity.json", "summary.json", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    found = read_json(folder / "summary.json")
    assert (folder / "digits_resnet.quantized.onnx").stat().st_size == found["bytes"]
    assert found["bytes"] < found["float_bytes"] / 6.8
    assert found["verification"]["metric"] == "top1"
    assert found["verification"]["samples"] == 100
    assert found["verification"]["drop"] <= 0.05


FEW_DIGITS = """
from pathlib import Path
import numpy as np

def test():
    with np.load(Path(__file__).parent / "few.npz") as digits:
        return [dict(digits)]

def calibration():
    return [{"image": test()[0]["image"][:4]}]
"""


def _digits(folder):
    from amq_onnx.model.data import load_function

    batches = list(load_function("models/digits.py", "test")())
    path = folder / "digits.npz"
    np.savez(path, **{name: np.concatenate([batch[name] for batch in batches])[:100] for name in batches[0]})
    return path


def test_demo_without_its_model(amq, tmp_path):
    ran = amq("demo", "--models", tmp_path, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "--models" in ran.err
    assert list(tmp_path.iterdir()) == []


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
