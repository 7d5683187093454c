"""Options that a user can't give: one sentence on standard error, the right exit code, and nothing written."""

import json

import pytest

from cli import networks
from cli.commands import quantize
from cli.networks import build, node, save


def test_folder_of_the_output_does_not_exist(refused, case, tmp_path, out):
    gone = tmp_path / "gone" / "file"
    refused(*quantize(case.model, gone, case.data), names=["-o", gone])
    for option in ("--save-plan", "--save-sensitivity", "--report", "--json"):
        refused(*quantize(case.model, out, case.data, option, gone), names=[option, gone])
    refused("sensitivity", case.model, "-o", gone, "--data", case.data, names=["-o", gone])
    refused("apply", case.model, case.plan, "-o", gone, names=["-o", gone])
    refused("inspect", case.model, "--json", gone, names=["--json", gone])
    refused("frontier", case.model, case.table, "--json", gone, names=["--json", gone])
    refused("verify", case.model, case.model, "--data", case.data, "--json", gone, names=["--json", gone])
    refused("export", "torch.nn:Identity", "-o", gone, names=["-o", gone])


def test_output_is_a_folder(refused, case, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    refused(*quantize(case.model, folder, case.data), names=["-o", folder])
    refused("apply", case.model, case.plan, "-o", folder, names=["-o", folder])


def test_output_missing(refused, case, tmp_path):
    asked = ["--size", "0.5", "--data", case.data]
    refused("quantize", case.model, *asked, names="-o")
    refused("apply", case.model, case.plan, names="-o")
    refused("export", "torch.nn:Identity", names="-o")


@pytest.mark.parametrize("size", ["4", "1.5", "abc", "-1", "0", "0.0", "150%", "0%", "nan", "1e6", "4 TB", "", "-0.5"])
def test_size_that_is_none(refused, case, out, size):
    refused("quantize", case.model, "-o", out, f"--size={size}", "--data", case.data, names=["--size", f"'{size}'"])


def test_size_missing(refused, case, out):
    refused("quantize", case.model, "-o", out, "--data", case.data, names="--size")


@pytest.mark.parametrize("size", ["0B", "0.4B", "1B", "0.00001"])
def test_size_too_small(refused, case, out, size):
    asked = ["--size", size, "--from-sensitivity", case.table]
    refused("quantize", case.model, "-o", out, *asked, code=3, names="the smallest")


@pytest.mark.parametrize("option", ["--bits", "--activation-bits"])
@pytest.mark.parametrize("bits", ["0-9", "x", "0", "17", "8-2", "4,,8", "", "-4", "4.5", "2-", "²"])
def test_bits_that_are_none(refused, case, out, option, bits):
    asked = [f"{option}={bits}", "--from-sensitivity", case.table, "--activation-average", "8"]
    refused("quantize", case.model, "-o", out, "--size", "0.5", *asked, names=[option, f"'{bits}'"])


@pytest.mark.parametrize("option", ["--bits", "--activation-bits"])
def test_bits_that_the_target_can_not_write(refused, case, out, option):
    asked = [option, "9", "--from-sensitivity", case.table]
    refused("quantize", case.model, "-o", out, "--size", "0.5", *asked, names=[option, "9 bits", "'onnxruntime'"])


def test_activations_of_one_bit(refused, case, out):
    refused(*quantize(case.model, out, case.data, "--activation-bits", "1"), names="--activation-bits")


def test_several_activation_widths_need_an_average(refused, case, out):
    more = ["--activation-bits", "4-8"]
    refused(*quantize(case.model, out, case.data, *more), names=["--activation-bits", "--activation-average"])
    refused("frontier", case.model, case.table, *more, names="--activation-average")
    more = ["--activation-bits", "float", "--activation-average", "5"]
    refused(*quantize(case.model, out, case.data, *more), names="--activation-average")


@pytest.mark.parametrize("average", ["nan", "inf", "-inf", "x"])
def test_activation_average_that_is_none(refused, case, out, average):
    more = ["--activation-bits", "4-8", f"--activation-average={average}", "--from-sensitivity", case.table]
    refused("quantize", case.model, "-o", out, "--size", "0.5", *more, names="--activation-average")


def test_exclude_that_matches_nothing_or_everything(refused, case, out):
    refused(*quantize(case.model, out, case.data, "--exclude", "nosuch"), names=["--exclude", "nosuch"])
    refused(*quantize(case.model, out, case.data, "--exclude", "w["), names=["--exclude", "w["])
    refused("inspect", case.model, "--exclude", "nosuch", names=["--exclude", "nosuch"])
    refused(*quantize(case.model, out, case.data, "--exclude", "."), names="--exclude")


@pytest.mark.parametrize(
    "pin", ["w1", "=4", "w1=", "w1=x", "w1=0", "w1=9", "w1=-1", "nosuch=4", "w[=4", "^image$=1", "w1=4.5"]
)
def test_pin_that_is_none(refused, case, out, pin):
    refused(*quantize(case.model, out, case.data, f"--pin={pin}"), names=pin.removesuffix("=4"))
    refused("frontier", case.model, case.table, f"--pin={pin}", names=pin.removesuffix("=4"))


def test_pin_of_a_float_activation(refused, case, out):
    more = ["--pin", "^image$=8", "--activation-bits", "float"]
    refused(*quantize(case.model, out, case.data, *more), names=["--pin", "image", "--activation-bits"])


def test_pin_that_the_table_lacks(refused, case, out):
    refused("frontier", case.model, case.table, "--pin", "^image$=3", names=["image", "3-bit", "--pin"])


@pytest.mark.parametrize("opset", ["12", "0", "-3", "999", "x"])
def test_opset_that_is_none(refused, case, out, opset):
    refused(*quantize(case.model, out, case.data, f"--opset={opset}"), names="opset")


@pytest.mark.parametrize(
    "option",
    [
        "--max-probes=1",
        "--relative-error=0",
        "--relative-error=nan",
        "--curvature-samples=0",
        "--limit=0",
        "--limit=-3",
        "--device=tpu9",
        "--device=cuda",
        "--metric=top3",
        "--loss=hinge",
        "--provider=abacus",
        "--seed=x",
        "--max-drop=x",
        "--max-drop=nan",
        "--seed=-1",
        "--unheard-of",
    ],
)
def test_options_out_of_range(refused, case, out, option):
    refused(*quantize(case.model, out, case.data, option), names=option.split("=")[0])


def test_limits_of_verify(refused, case):
    for limit in ("0", "-3"):
        refused("verify", case.model, case.model, "--data", case.data, f"--limit={limit}", names="--limit")


@pytest.mark.parametrize("count", ["0", "-2"])
def test_random_of_no_samples(refused, case, out, count):
    refused("quantize", case.model, "-o", out, "--size", "0.5", f"--random={count}", names="--random")


def test_random_and_data(refused, case, out):
    refused(*quantize(case.model, out, case.data, "--random"), names=["--random", "--data"])


def test_random_needs_fixed_sizes(refused, tmp_path, out):
    nodes = [node("MatMul", "x w", "y")]
    model = build(nodes, {"x": ["n", "length", 8]}, {"y": ["n", "length", 64]}, {"w": networks.noise(0, 8, 64)})
    path = save(model, tmp_path / "m.onnx")
    asked = ["quantize", path, "-o", out, "--size", "0.5"]
    refused(*asked, "--random", names=["--shape x=1,224,8", "'x'"])
    refused(*asked, "--random", "--shape", "x=1,5,9", names=["--shape x=1,5,9", "1,N,8"])
    refused(*asked, "--random", "--shape", "y=1,5,8", names=["--shape y", "x"])
    refused(*asked, "--random", "--shape", "x=1,-5,8", names=["--shape", "'x=1,-5,8'"])


def test_shapes_of_data(refused, case, out):
    refused(*quantize(case.model, out, case.data, "--shape", "image=1,1,8,8"), names=["--shape", "--random"])


def test_a_gate_without_anything_to_verify_on(refused, case, out):
    asked = ["--size", "0.5", "--from-sensitivity", case.table, "--max-drop", "0.01"]
    refused("quantize", case.model, "-o", out, *asked, names="--max-drop")


def test_neither_a_size_nor_a_drop(refused, case, out):
    refused("quantize", case.model, "-o", out, "--data", case.data, names=["--size", "--max-drop"])


def test_a_search_without_anything_to_verify_on(refused, case, out):
    refused("quantize", case.model, "-o", out, "--from-sensitivity", case.table, "--max-drop=.1", names="--max-drop")


@pytest.mark.parametrize(
    "more", [("--sensitivity", "gauss-newton"), ("--sensitivity", "norm"), ("--granularity=channel",)]
)
def test_losses_of_learned_rounding_where_none_are_measured(refused, case, out, more):
    asked = ["--data", case.data, "--rounding", "learned", *more]
    for command in (["quantize", case.model, "-o", out, "--size", "0.5"], ["sensitivity", case.model]):
        refused(*command, *asked, names=["--rounding", "--sensitivity hybrid"])


def test_channels_that_the_table_or_the_target_lacks(refused, case, out):
    asked = ["--size", "0.5", "--from-sensitivity", case.table, "--granularity", "channel"]
    refused("quantize", case.model, "-o", out, *asked, names=["'w1'", "--granularity"])
    refused("quantize", case.model, "-o", out, *asked, "--target", "standard", names=["--granularity", "'standard'"])


@pytest.mark.parametrize(
    ("widths", "named"), [([4, 2, 3], ["'w1'", "3 widths", "16 channels"]), ([4, "x"], ["'w1'", "'x'"]), ([], ["'w1'"])]
)
def test_widths_of_channels_that_do_not_fit(refused, case, out, tmp_path, widths, named):
    body = json.loads(case.plan.read_text())
    body["weights"]["w1"] = widths
    plan = tmp_path / "p.json"
    plan.write_text(json.dumps(body))
    refused("apply", case.model, plan, "-o", out, names=named)


def test_a_gate_on_decibels(refused, case, out):
    more = ["--metric", "sqnr", "--max-drop", "1"]
    refused(*quantize(case.model, out, case.data, *more), names=["--max-drop", "sqnr"])


def test_no_command(amq):
    for arguments in ([], ["quantise"], ["quantize"]):
        ran = amq(*arguments)
        assert ran.code == 2
        assert len(ran.err.splitlines()) == 1
        assert ran.err.startswith("amq")


@pytest.mark.parametrize("entry", ["abc", "", "=1"])
def test_session_option_without_a_value(refused, case, entry):
    refused(
        "verify", case.model, case.model, "--data", case.data, f"--session-option={entry}", names="--session-option"
    )


def test_threads_below_none(refused, case):
    refused("verify", case.model, case.model, "--data", case.data, "--threads=-1", names="--threads")


def test_frontier_of_too_few_points(refused, case):
    refused("frontier", case.model, case.table, "--points", "1", names="--points")
