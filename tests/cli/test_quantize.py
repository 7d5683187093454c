"""amq quantize: what it writes, and where."""

import json
import re

import numpy as np
import onnx
import onnxruntime
import pytest

from cli import networks
from cli.networks import FAST, listing, save


def widths_in(path):
    """Bytes of the packed pieces, by weight: q<key> or its pieces q<key>k, q<key>l."""
    model = onnx.load(path)
    found = {}
    for tensor in model.graph.initializer:
        match = re.fullmatch(r"q(w\d+)([klm]?)", tensor.name)
        if match:
            found[match[1]] = found.get(match[1], 0) + onnx.numpy_helper.to_array(tensor).nbytes
    return found


def outputs_of(path, feeds):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def test_writes_the_file_within_the_budget_and_everything_that_was_asked_for(amq, case, tmp_path, read_json):
    out, plan, table, summary = (tmp_path / name for name in ("o.onnx", "plan.json", "s.json", "summary.json"))
    asked = ["--save-plan", plan, "--save-sensitivity", table, "--json", summary]
    ran = amq("quantize", case.model, "-o", out, "--size", "0.3", "--data", case.data, *FAST, *asked)
    assert ran.code == 0, ran.err
    assert set(listing(tmp_path)) == {path.relative_to(tmp_path) for path in (out, plan, table, summary)}
    found = read_json(summary)
    assert found["bytes"] == out.stat().st_size == found["predicted_bytes"]
    assert found["bytes"] <= found["budget_bytes"] == int(0.3 * case.bytes)
    assert found["float_bytes"] == case.bytes
    chosen = read_json(plan)
    assert found["weights"] == chosen["weights"]
    assert set(chosen["weights"]) == {"w1", "w2", "w3"}
    elements = {"w1": 432, "w2": 4608, "w3": 320}
    mean = sum(chosen["weights"][name] * count for name, count in elements.items()) / sum(elements.values())
    assert found["mean_weight_bits"] == pytest.approx(mean)
    assert sum(found["weight_widths"].values()) == 3
    assert sum(found["shares"].values()) == pytest.approx(1)
    table = read_json(table)
    omega = sum(table["weights"][name]["loss"][str(bits)][0] for name, bits in chosen["weights"].items())
    omega += sum(row["loss"]["8"][0] for row in table["activations"].values())
    assert found["perturbation"] == pytest.approx(omega)
    verification = found["verification"]
    assert (verification["metric"], verification["samples"], verification["float_score"]) == ("top1", 32, 1.0)
    assert verification["quantized_bytes"] == found["bytes"]
    assert verification["drop"] == pytest.approx(1 - verification["quantized_score"])
    assert str(out) in ran.out.splitlines()[-1]
    # The table on the terminal and the summary say the same.
    for name, bits in chosen["weights"].items():
        assert re.search(rf"{name} .*{elements[name]:,} .* {bits} ", ran.out)


def test_the_file_has_the_widths_of_the_plan(amq, case, tmp_path, read_json):
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    ran = amq("quantize", case.model, "-o", out, "--size", "0.3", "--from-sensitivity", case.table, "--save-plan", plan)
    assert ran.code == 0, ran.err
    bits = read_json(plan)["weights"]
    # 432 and 4608 elements end on whole bytes at every width, 320 too.
    assert widths_in(out) == {f"w{i}": n * bits[f"w{i + 1}"] // 8 for i, n in enumerate((432, 4608, 320))}


def test_the_file_computes_what_the_float_model_does(amq, case, tmp_path):
    out = tmp_path / "o.onnx"
    assert amq("quantize", case.model, "-o", out, "--size", "0.6", "--from-sensitivity", case.table).code == 0
    feeds = {"image": networks.images(16, seed=99)}
    (found,) = outputs_of(out, feeds)
    wanted = networks.run_float(networks.conv_net(), feeds)["scores"]
    assert np.square(found - wanted).sum() < 1e-3 * np.square(wanted).sum()


@pytest.mark.parametrize("size", ["0.25", "30%", "7KB", "9000B", "0.008MB", "0.9"])
def test_the_file_is_never_above_the_budget(amq, case, tmp_path, read_json, size):
    budget = {"0.25": int(0.25 * case.bytes), "30%": int(0.3 * case.bytes), "0.9": int(0.9 * case.bytes)}.get(
        size, {"7KB": 7000, "9000B": 9000, "0.008MB": 8000}.get(size)
    )
    out, summary = tmp_path / "o.onnx", tmp_path / "s.json"
    ran = amq("quantize", case.model, "-o", out, "--size", size, "--from-sensitivity", case.table, "--json", summary)
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert out.stat().st_size == found["bytes"] == found["predicted_bytes"] <= found["budget_bytes"] == budget
    assert found["verification"] is None


def test_a_larger_budget_never_perturbs_more(amq, case, tmp_path, read_json):
    found = []
    for size in range(5400, 9000, 300):
        summary = tmp_path / f"{size}.json"
        asked = ["--size", f"{size}B", "--from-sensitivity", case.table, "--json", summary, "--dry-run"]
        if amq("quantize", case.model, *asked).code == 0:
            found.append(read_json(summary)["perturbation"])
    assert len(found) > 5
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0]


def test_the_same_command_gives_the_same_bytes(amq, case, tmp_path):
    listings = []
    for turn in ("first", "second"):
        folder = tmp_path / turn
        folder.mkdir()
        asked = ["--save-plan", folder / "p.json", "--save-sensitivity", folder / "s.json", *FAST]
        asked += ["--activation-bits", "4-8", "--activation-average", "6"]
        ran = amq("quantize", case.model, "-o", folder / "o.onnx", "--size", "0.3", "--data", case.data, *asked)
        assert ran.code == 0, ran.err
        listings.append(listing(folder))
    assert listings[0] == listings[1]


def test_the_seed_changes_the_losses(amq, case, tmp_path, read_json):
    losses = []
    for seed in ("0", "1"):
        table = tmp_path / f"{seed}.json"
        assert amq("sensitivity", case.model, "-o", table, "--data", case.data, "--seed", seed, *FAST).code == 0
        losses.append(read_json(table)["weights"]["w1"]["loss"])
    assert losses[0] != losses[1]


def test_a_saved_table_gives_the_file_of_the_direct_way_and_needs_no_data(amq, case, tmp_path):
    direct, table, later = tmp_path / "direct.onnx", tmp_path / "s.json", tmp_path / "later.onnx"
    first = ["-o", direct, "--size", "0.3", "--data", case.data, "--save-sensitivity", table, *FAST]
    assert amq("quantize", case.model, *first).code == 0
    ran = amq("quantize", case.model, "-o", later, "--size", "0.3", "--from-sensitivity", table)
    assert ran.code == 0, ran.err
    assert later.read_bytes() == direct.read_bytes()


def test_a_table_of_another_rounding_than_the_files_is_remarked_on(amq, case, tmp_path):
    learning = ["--data", case.data, "--tune", "rounding", "--tune-steps", "2"]
    for rounding, others in (("nearest", learning), ("learned", ["--tune", "none"])):
        table = tmp_path / f"{rounding}.json"
        assert amq("sensitivity", case.model, "-o", table, "--data", case.data, "--rounding", rounding, *FAST).code == 0
        for more in (learning, ["--tune", "none"]):
            asked = ["--dry-run", "--size", "0.3", "--from-sensitivity", table, *more]
            ran = amq("quantize", case.model, *asked)
            assert ran.code == 0, ran.err
            remarked = str(table) in " ".join(ran.err.split())
            assert remarked == (more == others), ran.err


def test_dry_run_writes_nothing(amq, case, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = listing(case.folder)
    asked = ["--size", "0.3", "--data", case.data, "--dry-run", *FAST]
    for output in ([], ["-o", tmp_path / "o.onnx"]):
        ran = amq("quantize", case.model, *output, *asked)
        assert ran.code == 0, ran.err
        assert "wrote" not in ran.out
        assert list(tmp_path.iterdir()) == []
    assert listing(case.folder) == before


@pytest.mark.parametrize("pattern", ["w2", "^w[23]$"])
def test_excluded_sites_stay_float(amq, case, tmp_path, read_json, pattern):
    out, plan, summary = tmp_path / "o.onnx", tmp_path / "p.json", tmp_path / "s.json"
    asked = ["--exclude", pattern, "--save-plan", plan, "--json", summary, "--data", case.data, *FAST]
    ran = amq("quantize", case.model, "-o", out, "--size", "0.99", *asked)
    assert ran.code == 0, ran.err
    dropped = {name for name in ("w1", "w2", "w3") if re.search(pattern, name)}
    kept = {"w1", "w2", "w3"} - dropped
    assert set(read_json(plan)["weights"]) == kept
    for name in dropped:
        assert pattern in read_json(plan)["left_float"][name]
        assert pattern in read_json(summary)["left_float"][name]
        assert name in ran.out
    floats = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for tensor in onnx.load(out).graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
    }
    assert set(floats) == dropped
    for name, values in floats.items():
        np.testing.assert_array_equal(values, networks.conv_constants()[name])


def test_pinned_sites_have_their_widths(amq, case, tmp_path, read_json):
    """Widths beyond those to choose from are measured for them; of two pins the last counts."""
    plan, table = tmp_path / "p.json", tmp_path / "t.json"
    pins = ["--pin", "^w[12]$=8", "--pin", "^w2$=7", "--pin", "^image$=8"]
    widths = ["--bits", "2,4", "--activation-bits", "4"]
    asked = [*widths, *pins, "--save-plan", plan, "--save-sensitivity", table, "--data", case.data, *FAST]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.99", *asked)
    assert ran.code == 0, ran.err
    weights = read_json(plan)["weights"]
    assert (weights["w1"], weights["w2"]) == (8, 7)
    assert weights["w3"] in (2, 4)
    activations = {name: site["bits"] for name, site in read_json(plan)["activations"].items()}
    assert activations.pop("image") == 8
    assert set(activations.values()) == {4}
    points = tmp_path / "f.json"
    ran = amq("frontier", case.model, table, *widths, *pins, "--json", points)
    assert ran.code == 0, ran.err
    assert {(point["weights"]["w1"], point["activations"]["image"]) for point in read_json(points)} == {(8, 8)}
    assert {point["weights"]["w3"] for point in read_json(points)} == {2, 4}


def test_excluding_an_activation_leaves_it_float(amq, case, tmp_path, read_json):
    plan = tmp_path / "p.json"
    asked = ["--exclude", "^r1$", "--save-plan", plan, "--data", case.data, *FAST]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.4", *asked)
    assert ran.code == 0, ran.err
    assert "r1" not in read_json(plan)["activations"]
    assert "image" in read_json(plan)["activations"]
    quantized = [
        item.input[0] for item in onnx.load(tmp_path / "o.onnx").graph.node if item.op_type == "QuantizeLinear"
    ]
    assert "image" in quantized
    assert "r1" not in quantized
    assert "c1" not in quantized


def test_float_activations(amq, case, tmp_path, read_json):
    out, plan = tmp_path / "o.onnx", tmp_path / "p.json"
    asked = ["--activation-bits", "float", "--save-plan", plan, "--data", case.data, *FAST]
    ran = amq("quantize", case.model, "-o", out, "--size", "0.4", *asked)
    assert ran.code == 0, ran.err
    assert read_json(plan)["activations"] == {}
    assert "QuantizeLinear" not in {item.op_type for item in onnx.load(out).graph.node}
    assert len(read_json(plan)["weights"]) == 3


def test_mixed_activations_keep_their_mean_width(amq, case, tmp_path, read_json):
    elements = {name: row["elements"] for name, row in read_json(case.table)["activations"].items()}
    chosen = {}
    for average in (4, 5, 6.5, 8):
        plan = tmp_path / f"{average}.json"
        asked = ["--activation-bits", "4-8", "--activation-average", average, "--from-sensitivity", case.table]
        ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.5", *asked, "--save-plan", plan)
        assert ran.code == 0, ran.err
        bits = {name: site["bits"] for name, site in read_json(plan)["activations"].items()}
        assert set(bits) == set(elements)
        mean = sum(bits[name] * count for name, count in elements.items()) / sum(elements.values())
        assert mean <= average
        chosen[average] = set(bits.values())
    assert chosen[4] == {4}
    assert chosen[8] == {8}
    assert len(chosen[6.5]) > 1


@pytest.mark.parametrize("opset", [18, 21])
def test_opset(amq, case, tmp_path, opset):
    out = tmp_path / "o.onnx"
    ran = amq("quantize", case.model, "-o", out, "--size", "0.4", "--data", case.data, "--opset", opset, *FAST)
    assert ran.code == 0, ran.err
    model = onnx.load(out)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", opset)]
    onnx.checker.check_model(model, full_check=True)
    (scores,) = outputs_of(out, {"image": networks.images(4)})
    wanted = networks.run_float(networks.conv_net(), {"image": networks.images(4)})["scores"]
    assert np.square(scores - wanted).sum() < 1e-2 * np.square(wanted).sum()


def with_metadata():
    model = networks.conv_net()
    for item in model.graph.node:
        item.doc_string = "written by an exporter, line 12"
        item.metadata_props.add(key="namespace", value="model/layer")
    return model


def test_metadata_of_nodes_is_kept_only_if_asked_for_and_within_the_budget(amq, case, tmp_path):
    model = save(with_metadata(), tmp_path / "m.onnx")
    sizes = {}
    for keep in (False, True):
        out = tmp_path / f"{keep}.onnx"
        asked = ["--keep-metadata"] if keep else []
        ran = amq("quantize", model, "-o", out, "--size", "7000B", "--data", case.data, *asked, *FAST)
        assert ran.code == 0, ran.err
        assert out.stat().st_size <= 7000
        nodes = {item.op_type: item for item in onnx.load(out).graph.node}
        assert bool(nodes["Gemm"].metadata_props) == keep
        assert bool(nodes["Gemm"].doc_string) == keep
        sizes[keep] = len(onnx.load(out).SerializeToString())
    assert sizes[True] != sizes[False]


def test_channels_with_widths_of_their_own(amq, case, tmp_path, read_json):
    out, again, plan, table, summary = (tmp_path / name for name in ("o.onnx", "a.onnx", "p.json", "s.json", "j.json"))
    asked = ["--size", "0.27", "--granularity", "channel", "--json", summary, "--save-plan", plan]
    more = ["--data", case.data, "--save-sensitivity", table, *FAST]
    ran = amq("quantize", case.model, "-o", out, *asked, *more)
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert found["bytes"] == found["predicted_bytes"] == out.stat().st_size <= found["budget_bytes"]
    mixed = {name: bits for name, bits in read_json(plan)["weights"].items() if isinstance(bits, list)}
    assert found["mixed_weights"] == len(mixed) > 0
    for name, bits in mixed.items():
        assert len(bits) == {"w1": 16, "w2": 32, "w3": 10}[name]
        counts = " + ".join(f"{bits.count(width)} x {width}" for width in sorted(set(bits)))
        assert f"{np.mean(bits):.2f} ({counts})" in ran.out
    # The saved table gives the same file, and so does the plan; the plan can be edited.
    assert amq("quantize", case.model, "-o", again, *asked, "--from-sensitivity", table).code == 0
    assert again.read_bytes() == out.read_bytes()
    assert amq("apply", case.model, plan, "-o", again).code == 0
    assert again.read_bytes() == out.read_bytes()
    body = read_json(plan)
    body["weights"]["w1"] = [8, 3] * 8
    plan.write_text(json.dumps(body))
    assert amq("apply", case.model, plan, "-o", again).code == 0
    assert again.read_bytes() != out.read_bytes()
    outputs_of(again, {"image": networks.images(2)})
    ran = amq("frontier", case.model, table, "--granularity", "channel", "--json", summary, "--points", "50")
    assert ran.code == 0, ran.err
    assert any(isinstance(bits, list) for point in read_json(summary) for bits in point["weights"].values())


def test_digits_network_within_a_seventh_loses_little(amq, tmp_path, read_json):
    summary, out = tmp_path / "s.json", tmp_path / "o.onnx"
    asked = ["--data", "models/digits.py:calibration", "--eval", "models/digits.py:test", "--json", summary]
    asked += ["--limit", "64", "--curvature-samples", "16", "--max-probes", "4", "--relative-error", "0.3"]
    ran = amq("quantize", "models/digits_resnet.onnx", "-o", out, "--size", "0.145", *asked, "--max-drop", "0.03")
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert out.stat().st_size == found["bytes"] <= 0.145 * found["float_bytes"]
    assert found["verification"]["samples"] == 500
    assert len(set(found["weights"].values())) > 2


@pytest.mark.parametrize("tune", [("none",), ("rounding", "--tune-steps", 30), ("full", "--tune-epochs", 1)])
def test_an_error_weighed_by_another_output(amq, tmp_path, read_json, tune):
    """The file has the same outputs as ever; the table knows how the loss was weighed."""
    model = save(networks.detector(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", image=networks.images())
    out, table = tmp_path / "o.onnx", tmp_path / "s.json"
    loss = ("--loss", "scores=sigmoid,boxes=squared*scores")
    common = ("quantize", model, "-o", out, "--size", ".3", "--data", tmp_path / "d.npz", "--tune", *tune)
    plan = tmp_path / "plan.json"
    ran = amq(*common, *loss, "--save-sensitivity", table, "--save-plan", plan, "--report", tmp_path / "r.html")
    assert ran.code == 0, ran.err
    assert read_json(table)["loss"] == {
        "scores": "sigmoid: asked for by --loss",
        "boxes": "squared*scores: asked for by --loss",
    }
    assert [output.name for output in onnx.load(out).graph.output] == ["scores", "boxes"]
    onnx.checker.check_model(onnx.load(out))
    again = tmp_path / "again.json"
    assert amq(*common, "--from-sensitivity", table, "--save-plan", again).code == 0
    assert read_json(again)["weights"] == read_json(plan)["weights"]
    plain = tmp_path / "plain.json"
    assert amq(*common, "--loss", "scores=sigmoid,boxes=squared", "--save-sensitivity", plain).code == 0
    assert read_json(plain)["weights"] != read_json(table)["weights"]
