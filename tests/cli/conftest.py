import json
from types import SimpleNamespace

import numpy as np
import pytest

from amq_onnx.cli.main import main
from cli import networks


@pytest.fixture
def amq(capfd):
    """Runs a command in this process: its exit code, and what it and the libraries under it print.

    `quantize` learns nothing unless --tune is given: that takes seconds.
    """

    def run(*arguments):
        given = [str(argument) for argument in arguments]
        if given[:1] == ["quantize"] and len(given) > 1 and "--tune" not in given:
            given += ["--tune", "none"]
        capfd.readouterr()
        code = main(given)
        captured = capfd.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


@pytest.fixture
def refused(amq, tmp_path):
    """Runs a command that must fail; gives its one sentence. Everything is in tmp_path, which must not change."""

    def run(*arguments, code=2, names=()):
        before = networks.listing(tmp_path)
        ran = amq(*arguments)
        lines = [line for line in ran.err.splitlines() if not line.endswith(" ...")]
        assert ran.code == code, ran.err
        assert len(lines) == 1, ran.err
        assert lines[0].startswith(f"amq {arguments[0]}: "), lines[0]
        assert "Traceback" not in ran.err
        for name in names if isinstance(names, (list, tuple)) else [names]:
            assert str(name) in lines[0], lines[0]
        assert networks.listing(tmp_path) == before
        return lines[0]

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.onnx"


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    """A model, its data with the labels that the float model gives, and a sensitivity table, all files."""
    folder = tmp_path_factory.mktemp("case")
    model = networks.conv_net()
    images = networks.images()
    labels = networks.run_float(model, {"image": images})["scores"].argmax(1)
    np.savez(folder / "data.npz", image=images, labels=labels)
    np.savez(folder / "unlabelled.npz", image=images)
    networks.save(model, folder / "model.onnx")
    table = folder / "sensitivity.json"
    arguments = ["sensitivity", folder / "model.onnx", "-o", table, "--data", folder / "data.npz", *networks.FAST]
    assert main([str(argument) for argument in [*arguments, "--activation-bits", "4-8"]]) == 0
    plan = folder / "plan.json"
    arguments = ["quantize", folder / "model.onnx", "--dry-run", "--size", "0.3", "--from-sensitivity", table]
    assert main([str(argument) for argument in [*arguments, "--save-plan", plan]]) == 0
    return SimpleNamespace(
        folder=folder,
        model=folder / "model.onnx",
        data=folder / "data.npz",
        unlabelled=folder / "unlabelled.npz",
        table=table,
        plan=plan,
        bytes=(folder / "model.onnx").stat().st_size,
    )


@pytest.fixture
def read_json():
    def read(path):
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)

    return read


def _no_constant(name):
    raise AssertionError(f"{name} is not JSON")
