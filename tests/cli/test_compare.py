"""amq compare: rivals at the same bytes."""

import numpy as np
import onnx
import pytest

from amq_onnx.comparison import STRATEGIES
from cli.networks import FAST


@pytest.fixture(scope="module")
def compared(case, tmp_path_factory):
    from amq_onnx.cli.main import main

    folder = tmp_path_factory.mktemp("compared")
    table = folder / "table.json"
    arguments = ["compare", case.model, "--data", case.data, "--uniform-bits", "4", *FAST, "--bits", "2-8"]
    arguments += ["--strategies", ",".join(STRATEGIES), "--episodes", "8", "-o", folder, "--json", table]
    arguments += ["--activation-bits", "4-8", "--activation-average", "6"]
    assert main([str(argument) for argument in arguments]) == 0
    return folder, table


def test_every_strategy_gets_a_file_within_the_same_bytes(compared, read_json):
    folder, table = compared
    found = read_json(table)
    assert [row["strategy"] for row in found["rows"]] == list(STRATEGIES)
    for row in found["rows"]:
        written = folder / f"{row['strategy']}.onnx"
        onnx.checker.check_model(onnx.load(written))
        assert written.stat().st_size == row["bytes"] <= row["budget_bytes"]
        assert set(row["activations"].values()) <= set(range(4, 9))
        assert row["seconds"] > 0 and row["processor_seconds"] > 0
        assert row["divergence"]["scores"] >= 0
    for seconds in ("seconds", "processor_seconds"):
        assert 0 < found["rows"][-1][f"file_{seconds}"] < found["rows"][-1][seconds]
    assert (found["rows"][-1]["files"] > 0) and not any(row["files"] for row in found["rows"][:-1])


def test_traces_expect_the_least_of_their_own_plan_and_more_of_the_worst(compared, read_json):
    rows = {row["strategy"]: row for row in read_json(compared[1])["rows"]}
    least = rows["trace"]["perturbation"]
    assert all(row["perturbation"] >= least * (1 - 1e-9) for row in rows.values())
    assert rows["worst"]["perturbation"] > least


def test_the_uniform_file_has_one_width_and_all_the_bytes(compared, read_json):
    found = read_json(compared[1])
    row = next(row for row in found["rows"] if row["strategy"] == "uniform")
    assert set(row["weights"].values()) == {4} and set(row["activations"].values()) == {6}
    assert row["bytes"] == row["budget_bytes"]


def test_tuning_is_the_same_for_all(amq, case, read_json, tmp_path):
    common = ("compare", case.model, "--data", case.data, "--uniform-bits", 2, *FAST, "--bits", "2,3")
    common += ("--strategies", "trace,uniform")
    plain, learned = tmp_path / "plain.json", tmp_path / "learned.json"
    assert amq(*common, "--json", plain).code == 0
    assert amq(*common, "--json", learned, "--tune", "rounding", "--tune-steps", 300).code == 0
    for before, after in zip(read_json(plain)["rows"], read_json(learned)["rows"], strict=True):
        assert after["weights"] == before["weights"]
        assert after["divergence"]["scores"] < before["divergence"]["scores"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "give --size or --uniform-bits"),
        (("--size", ".3", "--strategies", "trace,best"), "'best' is unknown"),
        (("--uniform-bits", "1"), "--uniform-bits 1 is not among --bits"),
        (("--size", ".3", "--sensitivity", "norm"), "--strategies"),
        (("--size", ".3", "--granularity", "channel"), "--granularity channel"),
        (("--size", ".3", "--equalize"), "--equalize"),
        (("--size", ".3", "--quantize-outputs"), "--quantize-outputs"),
        (("--size", ".3", "--episodes", "0"), "--episodes"),
        (("--size", ".3", "--episode-epochs", "-1"), "--episode-epochs"),
        (("--size", ".3", "-o", "nowhere"), "'nowhere' is no folder"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(amq, case, options, said):
    found = amq("compare", case.model, "--data", case.data, *options)
    assert found.code == 2 and said in found.err and "Traceback" not in found.err


def test_a_size_that_no_strategy_can_meet(amq, case):
    found = amq("compare", case.model, "--data", case.data, "--size", "900B", *FAST, "--strategies", "norm")
    assert found.code == 3 and "900" in found.err


def test_the_table_names_bytes_and_search_time(amq, case):
    found = amq("compare", case.model, "--data", case.data, "--size", ".3", *FAST, "--strategies", "norm,random")
    assert found.code == 0
    for word in ("norm", "random", "search", "KL", "top1"):
        assert word in found.out


def test_several_sizes_share_what_is_measured(amq, case, read_json, tmp_path):
    common = ("compare", case.model, "--data", case.data, *FAST, "--strategies", "hybrid,norm")
    assert amq(*common, "--size", ".2,.4", "--uniform-bits", 4, "-o", tmp_path, "--json", tmp_path / "t.json").code == 0
    rows = read_json(tmp_path / "t.json")["rows"]
    assert [row["strategy"] for row in rows] == ["hybrid", "norm"] * 3
    assert [row["budget_bytes"] for row in rows[:4]] == [int(0.2 * case.bytes)] * 2 + [int(0.4 * case.bytes)] * 2
    assert len(list(tmp_path.glob("*.onnx"))) == 6
    assert amq(*common, "--size", ".4", "--json", tmp_path / "one.json").code == 0
    alone = read_json(tmp_path / "one.json")["rows"]
    assert [row["weights"] for row in alone] == [row["weights"] for row in rows[2:4]]


def test_random_follows_the_seed(amq, case, read_json, tmp_path):
    plans = []
    for seed in (0, 0, 1, 2, 3):
        common = ("compare", case.model, "--data", case.data, "--size", ".2", *FAST, "--strategies", "random")
        assert amq(*common, "--seed", seed, "--json", tmp_path / "t.json").code == 0
        plans.append(tuple(read_json(tmp_path / "t.json")["rows"][0]["weights"].values()))
    assert plans[0] == plans[1] and np.unique(plans, axis=0).shape[0] > 1
