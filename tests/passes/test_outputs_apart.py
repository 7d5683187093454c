"""Outputs of the graph that a Conv makes: an Identity in front, and codes where they are asked for."""

import json

import numpy as np
import onnx
import pytest
from cli.networks import build, noise, save, scaled
from quantized_files import relative_noise
from small_graphs import assert_left_alone, assert_same_outputs, f, model, node, operators, operators_run

from amq_onnx.cli.main import main
from amq_onnx.passes.base import run
from amq_onnx.passes.outputs_apart import OutputsApart

CONV = node("Conv", "x w", "c", pads=[1, 1, 1, 1])
W = {"w": f(4, 3, 3, 3)}
IMAGES = {"x": ["n", 3, 6, 6]}


@pytest.mark.parametrize(
    ("nodes", "outputs", "added"),
    [
        ([CONV], ["c"], 1),
        ([CONV, node("Relu", "c", "y")], ["y"], 1),
        ([CONV, node("Relu", "c", "y")], ["c", "y"], 2),
        ([CONV, node("Exp", "c", "y")], ["y", "c"], 1),
    ],
)
def test_an_identity_in_front(nodes, outputs, added):
    before = model(nodes, IMAGES, dict.fromkeys(outputs), W)
    after = run(before, [OutputsApart()])
    assert sorted(operators(after)) == sorted([*operators(before), *["Identity"] * added])
    assert list(after.graph.output) == list(before.graph.output)
    assert_same_outputs(before, after, {"x": f(2, 3, 6, 6)})
    assert run(after, [OutputsApart()]) is after


@pytest.mark.parametrize(
    "nodes",
    [[CONV, node("Exp", "c", "y")], [CONV, node("Flatten", "c", "y")], [node("Relu", "x", "y")]],
    ids=["computed with", "moved", "no Conv"],
)
def test_others_stay(nodes):
    assert_left_alone(OutputsApart(), model(nodes, IMAGES, {"y": None}, W))


def image_network():
    """Makes an image with its last Conv, and a map of numbers with another."""
    nodes = [
        node("Conv", "x w1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2", "image", pads=[1, 1, 1, 1]),
        node("Conv", "r1 w3", "c3"),
        node("Flatten", "c3", "numbers"),
    ]
    constants = {"w1": scaled(1, 16, 3, 3, 3), "w2": scaled(2, 3, 16, 3, 3), "w3": scaled(3, 2, 16, 1, 1)}
    return build(nodes, {"x": ["n", 3, 8, 8]}, {"image": ["n", 3, 8, 8], "numbers": ["n", 128]}, constants)


@pytest.mark.parametrize(("asked", "integer"), [([], 1), (["--quantize-outputs"], 3)])
def test_files_with_rounded_outputs(tmp_path, asked, integer):
    network = image_network()
    path, files = save(network, tmp_path / "m.onnx"), [tmp_path / f"{number}.onnx" for number in range(3)]
    np.savez(tmp_path / "d.npz", x=noise(4, 32, 3, 8, 8))
    plan, table = tmp_path / "p.json", tmp_path / "s.json"
    options = ["--size", "0.9", "--bits", "8", "--data", str(tmp_path / "d.npz"), "--tune", "none"]
    saved = ["--save-plan", str(plan), "--save-sensitivity", str(table)]
    assert main(["quantize", str(path), "-o", str(files[0]), *options, *saved, *asked]) == 0
    assert main(["apply", str(path), str(plan), "-o", str(files[1])]) == 0
    assert main(["quantize", str(path), "-o", str(files[2]), *options, "--from-sensitivity", str(table)]) == 0
    assert len({file.read_bytes() for file in files}) == 1
    assert json.loads(plan.read_text())["quantized_outputs"] == bool(asked)
    written = onnx.load(files[0])
    assert list(written.graph.output) == list(network.graph.output)
    for output in ("image", "numbers"):
        assert relative_noise(network, files[0], {"x": noise(5, 8, 3, 8, 8)}, output) < (0.05 if asked else 0.02)
    assert operators_run(written, tmp_path, "ENABLE_EXTENDED").count("QLinearConv") == integer
