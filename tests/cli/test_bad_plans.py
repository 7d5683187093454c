"""Plans and tables that a user can't use: one sentence on standard error, the right exit code, and nothing written."""

import json

import numpy as np
import pytest
from onnx import numpy_helper

from cli import networks
from cli.networks import save


@pytest.fixture
def plan(case, tmp_path, read_json):
    """Writes plan.json after a change of its contents."""

    def write(change):
        body = read_json(case.plan)
        change(body)
        path = tmp_path / "plan.json"
        path.write_text(json.dumps(body))
        return path

    return write


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"plan"', "{}", '{"format": "amq-plan"}', "\x00"])
def test_broken_plan(refused, case, tmp_path, out, text):
    path = tmp_path / "p.json"
    path.write_text(text)
    refused("apply", case.model, path, "-o", out, names=path)


def test_no_plan(refused, case, tmp_path, out):
    refused("apply", case.model, tmp_path / "gone.json", "-o", out, names="gone.json")
    refused("apply", case.model, tmp_path, "-o", out, names=tmp_path)
    refused("apply", case.model, case.model, "-o", out, names=case.model)
    refused("apply", case.model, case.table, "-o", out, names=["amq-plan", case.table])


@pytest.mark.parametrize("version", [0, 1, "2", None])
def test_plan_of_another_version(refused, case, out, plan, version):
    path = plan(lambda body: body.update(version=version))
    refused("apply", case.model, path, "-o", out, names=[path, "version"])


@pytest.mark.parametrize("bits", [17, 0, -1, 4.5, "4", None, True, [4, None]])
def test_plan_with_impossible_widths(refused, case, out, plan, bits):
    path = plan(lambda body: body["weights"].update(w2=bits))
    refused("apply", case.model, path, "-o", out, names=[path, "'w2'"])
    path = plan(lambda body: body["activations"]["r1"].update(bits=bits))
    refused("apply", case.model, path, "-o", out, names=[path, "'r1'"])


def test_plan_with_widths_that_the_target_can_not_write(refused, case, out, plan):
    path = plan(lambda body: body["weights"].update(w2=9))
    refused("apply", case.model, path, "-o", out, names=["'w2'", "9 bits", "'onnxruntime'"])
    path = plan(lambda body: body["activations"]["r1"].update(bits=16))
    refused("apply", case.model, path, "-o", out, names=["'r1'", "16 bits", "'onnxruntime'"])


@pytest.mark.parametrize("expected", [1.0, [], [[1.0]], "x", [1.0, [2.0]], [[[[float("inf")]]]], {"a": 1}])
def test_plan_with_expected_inputs_that_do_not_fit(refused, case, out, plan, read_json, expected):
    layers = read_json(case.plan)["expected_inputs"]
    assert layers
    path = plan(lambda body: body["expected_inputs"].update({next(iter(layers)): expected}))
    refused("apply", case.model, path, "-o", out, names="expected inputs" if is_array(expected) else [path])


@pytest.mark.parametrize("scales", [[0.1], [], [-1.0], [float("nan")], 0.1, "x", [[0.1]]])
def test_plan_with_scales_that_do_not_fit(refused, case, out, plan, read_json, scales):
    bits = str(read_json(case.plan)["weights"]["w2"])
    path = plan(lambda body: body["scales"]["w2"].update({bits: scales}))
    refused("apply", case.model, path, "-o", out, names="'w2'" if scales in ([0.1], []) else [path])


def is_array(values):
    try:
        return bool(np.isfinite(np.asarray(values, np.float32)).all())
    except (TypeError, ValueError):
        return False


def test_plan_with_one_bit_for_an_activation(refused, case, out, plan):
    path = plan(lambda body: body["activations"]["r1"].update(bits=1))
    refused("apply", case.model, path, "-o", out, names=[path, "'r1'"])


@pytest.mark.parametrize("kind", ["weights", "activations"])
@pytest.mark.parametrize("name", ["nosuch", "scores", "b1", "other kind"])
def test_plan_with_an_unknown_site(refused, case, out, plan, kind, name):
    if name == "other kind":
        name = {"weights": "r1", "activations": "w2"}[kind]
    entry = 4 if kind == "weights" else {"bits": 8, "range": [0, 1]}
    path = plan(lambda body: body[kind].update({name: entry}))
    refused("apply", case.model, path, "-o", out, names=f"'{name}'")


@pytest.mark.parametrize("ends", [[1, 0], [0, None], [0], ["a", "b"], [0, float("nan")], [0, float("inf")], 3])
def test_plan_with_impossible_ranges(refused, case, out, plan, ends):
    path = plan(lambda body: body["activations"]["r1"].update(range=ends))
    refused("apply", case.model, path, "-o", out, names=path)


@pytest.mark.parametrize("key", ["model", "ranges", "weights", "activations"])
def test_plan_without_a_field(refused, case, out, plan, key):
    path = plan(lambda body: body.pop(key))
    refused("apply", case.model, path, "-o", out, names=[path, key])


def test_plan_with_unknown_ranges(refused, case, out, plan):
    path = plan(lambda body: body.update(ranges="guess"))
    refused("apply", case.model, path, "-o", out, names=[path, "guess"])


def test_plan_and_table_of_another_model(refused, case, tmp_path, out):
    model = networks.conv_net()
    values = networks.conv_constants()["w2"].copy()
    values[0, 0, 0, 0] += 1e-3
    (place,) = [i for i, tensor in enumerate(model.graph.initializer) if tensor.name == "w2"]
    model.graph.initializer[place].CopyFrom(numpy_helper.from_array(values, "w2"))
    other = save(model, tmp_path / "other.onnx")
    refused("apply", other, case.plan, "-o", out, names=[case.plan, "another model"])
    asked = ["--size", "0.5", "--from-sensitivity", case.table]
    refused("quantize", other, "-o", out, *asked, names="another model")
    refused("frontier", other, case.table, names="another model")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "amq-sensitivity"}'])
def test_broken_table(refused, case, tmp_path, out, text):
    path = tmp_path / "s.json"
    path.write_text(text)
    refused("quantize", case.model, "-o", out, "--size", "0.5", "--from-sensitivity", path, names=path)
    refused("frontier", case.model, path, names=path)


IMPOSSIBLE = {
    "version": lambda body: body.update(version=2),
    "no weights": lambda body: body.pop("weights"),
    "empty row": lambda body: body["weights"].update(w2={}),
    "trace nan": lambda body: body["weights"]["w2"].update(trace=float("nan")),
    "trace text": lambda body: body["weights"]["w2"].update(trace="much"),
    "error inf": lambda body: body["weights"]["w2"]["squared_error"].update({"4": float("inf")}),
    "error negative": lambda body: body["weights"]["w2"]["squared_error"].update({"4": -1}),
    "no elements": lambda body: body["weights"]["w2"].update(shape=[0, 3]),
    "perturbation nan": lambda body: body["activations"]["r1"]["perturbation"].update({"8": float("nan")}),
    "range nan": lambda body: body["activations"]["r1"]["ranges"].update({"8": [0, float("nan")]}),
    "range turned": lambda body: body["activations"]["r1"]["ranges"].update({"8": [1, 0]}),
    "range missing": lambda body: body["activations"]["r1"]["ranges"].pop("8"),
    "activation of nothing": lambda body: body["activations"]["r1"].update(elements=0),
    "ranges": lambda body: body.update(ranges="guess"),
    "loss": lambda body: body.update(loss="softmax"),
    "scale of zero": lambda body: body["scales"]["w2"].update({"4": [0.0]}),
    "unknown field": lambda body: body.update(surprise=1),
}


@pytest.mark.parametrize("change", IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_table_with_impossible_entries(refused, case, tmp_path, out, read_json, change):
    body = read_json(case.table)
    change(body)
    path = tmp_path / "s.json"
    path.write_text(json.dumps(body))
    refused("quantize", case.model, "-o", out, "--size", "0.5", "--from-sensitivity", path, names=path)


def test_table_without_the_width(amq, refused, case, tmp_path, out, read_json):
    body = read_json(case.table)
    for row in body["weights"].values():
        del row["squared_error"]["5"], row["loss"]["5"]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(body))
    asked = ["--size", "0.5", "--from-sensitivity", path]
    refused("quantize", case.model, "-o", out, *asked, names=["5", "--bits"])
    refused("quantize", case.model, "-o", out, *asked, "--bits", "1,4", names=["1-bit", "--bits"])
    refused("quantize", case.model, "-o", out, *asked, "--bits", "4", "--activation-bits", "3", names="3-bit")
    assert amq("quantize", case.model, "-o", out, *asked, "--bits", "2-4,6-8").code == 0
