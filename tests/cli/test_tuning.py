"""amq quantize --tune."""

import shutil

import numpy as np
import pytest

from cli.networks import FAST

SHORT = ("--tune-steps", "40", "--tune-samples", "16", *FAST)


def test_rounding_is_learned_by_default_at_the_same_bytes(amq, case, tmp_path, read_json):
    found = {}
    for tune in ("none", "rounding"):
        out, summary = tmp_path / f"{tune}.onnx", tmp_path / f"{tune}.json"
        options = ("--size", "0.2", "--data", case.unlabelled, "--tune", tune, "--json", summary, *FAST)
        ran = amq("quantize", case.model, "-o", out, *options, "--tune-steps", "250")
        assert ran.code == 0, ran.err
        found[tune] = read_json(summary)
        assert out.stat().st_size == found[tune]["bytes"]
    assert found["none"]["tuned"] is None
    assert found["none"]["bytes"] == found["rounding"]["bytes"]
    assert "learned rounding" in ran.out
    (block,) = found["rounding"]["tuned"]["blocks"]
    assert block["learned"] < block["nearest"] and block["settled"] > 0.9


@pytest.mark.parametrize("stopped", ["before the first epoch was over", "while rounding was learned"])
def test_the_same_bytes_again_and_after_an_interruption(stopped, amq, case, tmp_path):
    folder = tmp_path / "checkpoint"
    options = ("--size", "0.2", "--data", case.unlabelled, "--tune", "full", "--tune-epochs", "2", *SHORT)
    files = [tmp_path / f"{number}.onnx" for number in range(3)]
    assert amq("quantize", case.model, "-o", files[0], *options).code == 0
    assert amq("quantize", case.model, "-o", files[1], *options, "--checkpoint", folder).code == 0
    (kept,) = folder.rglob("tuning-full.npz")
    if stopped == "while rounding was learned":
        shutil.rmtree(kept.parent)
    else:
        kept.unlink()
    ran = amq("quantize", case.model, "-o", files[2], *options, "--checkpoint", folder, "--resume")
    assert ran.code == 0, ran.err
    assert "fine-tuning" in ran.out and "start" in ran.out
    assert files[0].read_bytes() == files[1].read_bytes() == files[2].read_bytes()
    elsewhere = amq("quantize", case.model, "-o", files[2], *options, "--checkpoint", tmp_path / "no", "--resume")
    assert elsewhere.code == 2 and "holds no checkpoint" in elsewhere.err


def test_a_search_for_the_size_evaluates_tuned_files(amq, case, tmp_path, read_json):
    summary = tmp_path / "s.json"
    ran = amq(
        *("quantize", case.model, "-o", tmp_path / "o.onnx", "--max-drop", "0.1", "--data", case.unlabelled),
        *("--tune", "rounding", "--json", summary, "--tune-steps", "5", "--tune-samples", "16", *FAST),
    )
    assert ran.code == 0, ran.err
    found = read_json(summary)
    assert found["tuned"]["blocks"] and found["verification"]["drop"] <= 0.1


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--tune-steps", "0"), "--tune-steps"),
        (("--tune-samples", "0"), "--tune-samples"),
        (("--tune", "full", "--tune-epochs", "0"), "--tune-epochs"),
        (("--tune", "full", "--tune-batch", "-1"), "--tune-batch"),
        (("--tune", "full", "--label-share", "1.5"), "--label-share"),
        (("--tune", "full", "--label-share", "0.5", *SHORT), "labels"),
        (("--tune", "full", "--tune-rate", "0"), "--tune-rate"),
        (("--tune", "full", "--tune-rate=nan"), "--tune-rate"),
        (("--tune", "full", "--tune-rate=inf"), "--tune-rate"),
        (("--tune", "full", "--tune-eval", "nosuch.npz"), "nosuch.npz"),
        (("--tune", "rounding", "--tune-eval", "nosuch.npz"), "--tune full"),
        (("--tune", "full", "--augment", "nosuch"), "--augment"),
        (("--tune", "full", "--augment", "nosuch.py:function"), "nosuch.py"),
        (("--tune", "rounding", "--resume", *SHORT), "--checkpoint"),
    ],
)
def test_wrong_options(amq, case, tmp_path, more, named):
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.3", "--data", case.unlabelled, *more)
    assert ran.code == 2 and named in ran.err and "Traceback" not in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_epochs_are_judged_by_other_data(amq, case, tmp_path, read_json):
    summary = tmp_path / "s.json"
    command = ("quantize", case.model, "-o", tmp_path / "o.onnx", "--size", "0.2", "--data", case.data)
    tuning = ("--tune", "full", "--tune-epochs", "2", "--label-share", "0.5", "--tune-rate", "2", *SHORT)
    ran = amq(*command, *tuning, "--tune-eval", case.data, "--json", summary)
    assert ran.code == 0, ran.err
    accuracies = [epoch["accuracy"] for epoch in read_json(summary)["tuned"]["epochs"]]
    assert len(accuracies) == 3 and all(0 <= accuracy <= 1 for accuracy in accuracies)
    ran = amq(*command, *tuning, "--tune-eval", case.unlabelled)
    assert ran.code == 2 and "--tune-eval" in ran.err and "labels" in ran.err


def test_tuning_without_data(amq, case, tmp_path):
    asked = ("--size", "0.3", "--from-sensitivity", case.table)
    ran = amq("quantize", case.model, "-o", tmp_path / "o.onnx", *asked, "--tune", "rounding")
    assert ran.code == 2 and "--data" in ran.err
    np.testing.assert_equal(list(tmp_path.iterdir()), [])
