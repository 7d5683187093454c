"""The text of a report: what is in it, what may not be, and that it's the same each time."""

import base64
import hashlib
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from amq_onnx.report import report_page
from amq_onnx.report.plotting import labels
from amq_onnx.result_tables import predictions
from report.conftest import HOSTILE, RUN


class Parsed(HTMLParser):
    """Tags with their attributes, the text of scripts and all other text, as a browser takes them."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts, self.text = [], [], ""
        self.open = None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = dict(attributes) if tag == "script" else None
        if tag == "script":
            self.scripts.append((dict(attributes), ""))

    def handle_endtag(self, tag):
        self.open = None

    def handle_data(self, data):
        if self.open is None:
            self.text += data
        else:
            self.scripts[-1] = (self.open, self.scripts[-1][1] + data)

    def json(self, name):
        (found,) = [text for attributes, text in self.scripts if attributes.get("id") == name]
        return json.loads(found)


@pytest.fixture(scope="module")
def page(hostile):
    return Parsed(report_page(hostile, RUN))


def strings(data):
    if isinstance(data, dict):
        data = list(data.values())
    if isinstance(data, list):
        return [text for entry in data for text in strings(entry)]
    return [data] if isinstance(data, str) else []


def test_every_site_and_the_result_are_in_it(page, hostile):
    plans = page.json("plans")
    assert plans["sites"] == [*hostile.plan.weights, *hostile.plan.activations]
    assert {HOSTILE["w1"], HOSTILE["r1"]} <= set(plans["sites"])
    for figure in ("sensitivity", "bits", "prediction"):
        said = " ".join(strings(page.json("figures")[figure]["data"]))
        for name in plans["sites"]:
            assert name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in said
    for wanted in (
        f"{hostile.float_bytes:,}",
        f"{hostile.bytes:,}",
        f"{hostile.verification.drop:.4f}",
        f"{hostile.verification.drop_interval[0]:.4f} to {hostile.verification.drop_interval[1]:.4f}",
        f"{1e3 * hostile.verification.latency.second:.3f}",
        f"onnxruntime {hostile.oldest_runtime} and newer",
        "amq quantize 'my model.onnx' -o o.onnx --size 0.3 --data '</script>.npz'",
        "1.2.3",
        "this <i>should</i> give pause",
        "<b>model</b>.onnx",
    ):
        assert wanted in page.text


def test_what_is_left_in_float_says_why(hostile):
    table = replace(hostile.sensitivity, left_float={"<td>w9": "it's <b>odd</b>"})
    page = Parsed(report_page(replace(hostile, sensitivity=table), RUN))
    assert "<td>w9" in page.text
    assert "it's <b>odd</b>" in page.text


def test_names_of_the_model_are_no_markup(page):
    tags = Counter(tag for tag, _ in page.tags)
    assert tags["script"] == 4
    assert not {"img", "a", "b", "i", "iframe"} & set(tags)
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    # Plotly obeys some tags in text: there are only its own.
    for text in strings(page.json("figures")):
        assert re.sub(r"</?b>|<br>|<extra></extra>", "", text).count("<") == 0, text


def test_nothing_is_fetched_and_no_script_runs_but_its_own(page):
    for tag, attributes in page.tags:
        assert "src" not in attributes
        assert attributes.get("href", "data:,") == "data:,", tag
    (style,) = re.findall(r":root \{.*", page.text, re.DOTALL)
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = [
        attributes["content"]
        for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data: blob:"
    hashes = {
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for attributes, text in page.scripts
        if "type" not in attributes
    }
    assert set(rules["script-src"].split()) == hashes
    assert len(hashes) == 2


def test_the_same_result_gives_the_same_bytes(hostile):
    assert report_page(hostile, RUN) == report_page(replace(hostile), replace(RUN))


def test_the_plans_are_those_of_the_frontier(mixed):
    result, _ = mixed
    plans = Parsed(report_page(result, RUN)).json("plans")
    assert any(not isinstance(widths, int) for point in result.frontier for widths in point.plan.weights.values())
    wanted = [(point.bytes, point.perturbation, point.plan) for point in result.frontier]
    wanted.append((result.bytes, result.perturbation, result.plan))
    assert len(plans["points"]) == len(wanted)
    for (size, perturbation, bits, codes), (bytes_, omega, plan) in zip(plans["points"], wanted, strict=True):
        assert (size, perturbation) == (bytes_, omega)
        assert bits == pytest.approx(result.sensitivity.mean_bits(plan.weights), abs=1e-3)
        for name, code in zip(plans["sites"], codes, strict=True):
            mean, said = plans["options"][code]
            widths = plan.weights[name]
            assert mean == pytest.approx(np.mean(widths), abs=1e-3)
            for width in set(np.ravel(widths).tolist()):
                assert re.search(rf"\b{width}\b", said)


def test_the_command_of_another_size_has_one_size(hostile):
    for given in (["--size", "0.3"], ["--size=0.3"]):
        run = replace(RUN, arguments=["quantize", "m.onnx", *given, "-o", "o.onnx"])
        plans = Parsed(report_page(hostile, run)).json("plans")
        assert plans["command"] == ["amq", "quantize", "m.onnx", "-o", "o.onnx"]


def test_without_data_it_says_what_is_missing(mixed):
    _, result = mixed
    assert result.measured is None
    page = Parsed(report_page(result, RUN))
    assert "not verified, since there were no data" in page.text
    assert "no calibration data: give --data" in page.text
    assert "prediction" not in page.json("figures")


def test_mean_traces_predict_twice_the_loss(mixed, hostile):
    """What is shown as predicted is a loss: half of what a mean trace gives, all of what was a loss before."""
    for result, factor in ((mixed[0], 0.5), (hostile, 1.0)):
        for name, (predicted, _, _) in predictions(result).items():
            if name in result.plan.weights:
                assert predicted == factor * result.sensitivity.weights[name].omega(result.plan.weights[name])


def test_a_single_sample_has_no_standard_error(hostile):
    losses = {name: {8: (1e-3, float("inf"))} for name in hostile.measured.losses}
    page = Parsed(report_page(replace(hostile, measured=replace(hostile.measured, losses=losses)), RUN))
    (_, weights, _) = page.json("figures")["prediction"]["data"]
    assert set(weights["error_y"]["array"]) == {None}


def test_a_loss_of_nothing_has_a_place_on_logarithmic_axes(hostile):
    names = list(hostile.measured.losses)
    losses = {**hostile.measured.losses, names[0]: {8: (0.0, 0.0)}}
    frontier = (*hostile.frontier, replace(hostile.frontier[-1], perturbation=0.0))
    result = replace(hostile, measured=replace(hostile.measured, losses=losses), frontier=frontier)
    figures = Parsed(report_page(result, RUN)).json("figures")
    assert min(figures["frontier"]["data"][0]["y"]) > 0
    assert min(figures["prediction"]["data"][1]["y"]) > 0
    assert " measured 0 ±" in figures["prediction"]["data"][1]["text"][0].replace("<br>", " ")


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["a.weight", "b.weight"], ["a", "b"]),
        (["net/conv1/w", "net/conv12/w"], ["conv1", "conv12"]),
        (["net.1", "net"], ["net.1", "net"]),
        (["weight"], ["weight"]),
        (["same", "same"], ["same", "same"]),
        (["x" * 50 + "1", "x" * 50 + "2"], ["xxx…xxxxx1", "xxx…xxxxx2"]),
        (["1" + "x" * 50, "2" + "x" * 50, "2" + "x" * 40], ["1xx…xxxxxx", "2xx…xxxxxx", "2xx…xxxxxx"]),
        (["y" * 5 + "1" + "x" * 50, "y" * 5 + "2" + "x" * 50], ["yyyyy1xxx…", "yyyyy2xxx…"]),
    ],
)
def test_labels_tell_layers_apart(names, wanted):
    assert labels(names, 10) == wanted


@pytest.mark.parametrize(
    ("losses", "marks"),
    [((2e-3, 7e-3), ["0.002", "0.007"]), ((0.0, 0.0), None), ((1e-9, 5.0), ["1e-09", "1e-05", "0.1"])],
)
def test_any_losses_have_a_scale(hostile, losses, marks):
    table = hostile.sensitivity
    weights = {
        name: replace(row, loss={bits: (losses[bits % 2], 0.0) for bits in row.loss})
        for name, row in table.weights.items()
    }
    activations = {
        name: replace(row, loss=dict.fromkeys(row.loss, (losses[0], 0.0))) for name, row in table.activations.items()
    }
    result = replace(hostile, sensitivity=replace(table, weights=weights, activations=activations))
    (heat, _) = Parsed(report_page(result, RUN)).json("figures")["sensitivity"]["data"]
    said = heat["colorbar"]["ticktext"]
    assert said == marks if marks else len(said) == 1


def test_many_layers_make_tall_figures_and_a_small_file(large):
    text = report_page(large, RUN)
    page = Parsed(text)
    library = max(len(script) for _, script in page.scripts)
    assert len(text) - library < 2_000_000
    figures = page.json("figures")
    for name in ("sensitivity", "bits"):
        axis = figures[name]["layout"]["yaxis"]
        assert figures[name]["layout"]["height"] >= 16 * 250
        assert len(set(axis["ticktext"])) == 250
        assert max(map(len, axis["ticktext"])) <= 30
