"""amq export."""

import sys

import numpy as np
import onnx
import pytest

from cli import networks
from cli.networks import listing

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


class Counting(torch.nn.Module):
    def forward(self, x):
        return x + torch.zeros(1, 1).expand(len(x), -1)


def counting():
    return Counting()


class Halves(torch.nn.Module):
    def forward(self, x):
        first, second = x.chunk(2, 1)
        return first * second


def halves():
    return Halves()
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
    assert b"exported_networks.py" not in out.read_bytes()
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


def test_export_of_a_model_that_computes_with_the_size_of_its_batch(amq, tmp_path, networks_module):
    """torch fixes the batch then, at that of an example of ours that the user never gave."""
    out = tmp_path / "e.onnx"
    asked = ("export", f"{networks_module}:counting", "-o", out, "--input", "x=3x6")
    ran = amq(*asked)
    assert ran.code == 0, ran.err
    assert "the batch is that of the example" in ran.err + ran.out
    assert [axis.dim_value for axis in onnx.load(out).graph.input[0].type.tensor_type.shape.dim] == [3, 6]
    ran = amq(*asked, "--fixed-batch")
    assert ran.code == 0, ran.err
    assert "example" not in ran.err + ran.out


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
        ("exported_networks:halves", ["--input", "x=1x6", "--opset", "17"], "--opset 17"),
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
