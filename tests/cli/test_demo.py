"""amq demo."""

from pathlib import Path

import numpy as np


def test_demo(amq, tmp_path, read_json):
    """With fewer images than the shipped script gives, so that it takes seconds."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "digits_resnet.onnx").symlink_to(Path("models/digits_resnet.onnx").resolve())
    with np.load(_digits(tmp_path)) as digits:
        np.savez(models / "few.npz", **digits)
    (models / "digits.py").write_text(FEW_DIGITS)
    folder = tmp_path / "new" / "out"
    ran = amq("demo", "--models", models, "-o", folder)
    assert ran.code == 0, ran.err
    names = {"digits_resnet.quantized.onnx", "plan.json", "sensitivity.json", "summary.json", "report.html"}
    assert {path.name for path in folder.iterdir()} == names
    found = read_json(folder / "summary.json")
    assert (folder / "digits_resnet.quantized.onnx").stat().st_size == found["bytes"]
    assert found["bytes"] < found["float_bytes"] / 6.8
    assert found["verification"]["metric"] == "top1"
    assert found["verification"]["samples"] == 100
    assert found["verification"]["drop"] <= 0.05


FEW_DIGITS = """
from pathlib import Path
import numpy as np


def test():
    with np.load(Path(__file__).parent / "few.npz") as digits:
        return [dict(digits)]


def calibration():
    return [{"image": test()[0]["image"][:4]}]
"""


def _digits(folder):
    from amq_onnx.model.data import load_function

    batches = list(load_function("models/digits.py", "test")())
    path = folder / "digits.npz"
    np.savez(path, **{name: np.concatenate([batch[name] for batch in batches])[:100] for name in batches[0]})
    return path


def test_demo_without_its_model(amq, tmp_path):
    ran = amq("demo", "--models", tmp_path, "-o", tmp_path / "out")
    assert ran.code == 2
    assert "--models" in ran.err
    assert list(tmp_path.iterdir()) == []
