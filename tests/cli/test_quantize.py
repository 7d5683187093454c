"""amq quantize: what it writes, where, and with which exit code."""

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


def test_limit_uses_the_first_samples_only(amq, case, tmp_path, read_json):
    with np.load(case.data) as arrays:
        images, labels = arrays["image"], arrays["labels"]
    few = tmp_path / "few.npz"
    np.savez(few, image=images[:5], labels=labels[:5])
    listings = []
    for name, data in (("limited", [case.data, "--limit", "5"]), ("few", [few])):
        folder = tmp_path / name
        folder.mkdir()
        asked = ["--save-sensitivity", folder / "s.json", *FAST]
        ran = amq("quantize", case.model, "-o", folder / "o.onnx", "--size", "0.3", "--data", *data, *asked)
        assert ran.code == 0, ran.err
        listings.append(listing(folder))
        assert json.loads((folder / "s.json").read_text())["samples"] == 5
    assert listings[0] == listings[1]


def test_random_data_say_so(amq, case, tmp_path, read_json):
    summary = tmp_path / "s.json"
    asked = ["--random", "6", "--json", summary, *FAST]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.3", *asked)
    assert ran.code == 0, ran.err
    assert "random" in ran.err
    assert read_json(summary)["verification"]["samples"] == 6
    ran = amq("quantize", case.model, "--dry-run", "--size", "0.3", *asked, "--limit", "4")
    assert read_json(summary)["verification"]["samples"] == 4


def test_data_may_be_a_folder_or_a_script(amq, case, tmp_path):
    with np.load(case.data) as arrays:
        images = arrays["image"]
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "1.npz", image=images[:20])
    np.savez(folder / "2.npz", image=images[20:])
    script = tmp_path / "data.py"
    script.write_text(
        "import numpy as np\n"
        "def batches():\n"
        f"    with np.load({str(case.data)!r}) as arrays:\n"
        "        for image in arrays['image']:\n"
        "            yield {'image': image[None]}\n"
    )
    files = []
    for number, data in enumerate((case.unlabelled, folder, f"{script}:batches")):
        out = tmp_path / f"{number}.onnx"
        ran = amq("quantize", case.model, "-o", out, "--size", "0.3", "--data", data, *FAST)
        assert ran.code == 0, ran.err
        files.append(out.read_bytes())
    assert files[0] == files[1] == files[2]


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


def test_evaluation_data_of_their_own(amq, case, tmp_path, read_json):
    images = networks.images(7, seed=3)
    labels = networks.run_float(networks.conv_net(), {"image": images})["scores"].argmax(1)
    np.savez(tmp_path / "eval.npz", image=images, labels=(labels + 1) % networks.CLASSES)
    summary = tmp_path / "s.json"
    asked = ["--from-sensitivity", case.table, "--eval", tmp_path / "eval.npz", "--json", summary]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.5", *asked)
    assert ran.code == 0, ran.err
    found = read_json(summary)["verification"]
    assert (found["samples"], found["float_score"]) == (7, 0)


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


def test_two_inputs_and_an_integer_output(amq, tmp_path, read_json):
    model = save(networks.two_inputs(), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", image=networks.images(), side=networks.noise(8, 32, 6))
    out, summary = tmp_path / "o.onnx", tmp_path / "s.json"
    asked = ["--data", tmp_path / "d.npz", "--json", summary, *FAST]
    ran = amq("quantize", model, "-o", out, "--size", "0.4", *asked)
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert "class" in found["loss"]
    assert found["loss"]["class"].startswith("left out")
    assert set(found["verification"]["outputs"]) == {"scores"}
    assert [output.name for output in onnx.load(out).graph.output] == ["scores", "class"]
    assert [value.name for value in onnx.load(out).graph.input] == ["image", "side"]


def test_the_hessian_of_labelled_data(amq, case, tmp_path, read_json):
    summary = tmp_path / "s.json"
    asked = ["--data", case.data, "--sensitivity", "hessian", "--json", summary, *FAST]
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.4", *asked)
    assert ran.code == 0, ran.err
    assert read_json(summary)["curvature"]["method"] == "hessian"


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
