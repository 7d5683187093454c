"""The shipped models: what models/README.md says of them, and the executor against onnxruntime on each."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from amq_onnx.executor.interpreter import Executor
from amq_onnx.measurement_options import SensitivityOptions
from amq_onnx.model.data import load_function
from amq_onnx.pipeline import quantize

MODELS = Path(__file__).parent.parent / "models"
ROW = re.compile(r"^\| `(\w+\.onnx)` \|.*\| ([\d,]+) \| (\.\d+) \|$", re.MULTILINE)
README = {
    file: (int(size.replace(",", "")), float(top1))
    for file, size, top1 in ROW.findall((MODELS / "README.md").read_text())
}
# Nodes of the kinds that the family stands for: an exporter might take them apart, or join them.
NODES = {
    "digits_resnet.onnx": {"Conv": 15, "Add": 6},
    "digits_inception.onnx": {"Conv": 16, "Concat": 3, "MaxPool": 2, "AveragePool": 1},
    "digits_squeezenext.onnx": {"Conv": 45, "Add": 8},
    "digits_transformer.onnx": {"Softmax": 3, "LayerNormalization": 7, "Gelu": 3},
    "digits_lstm.onnx": {"LSTM": 2},
}


@pytest.fixture(scope="module")
def digits():
    batches = list(load_function(str(MODELS / "digits.py"), "test")())
    return {name: np.concatenate([batch[name] for batch in batches]) for name in ("image", "labels")}


def test_every_file_is_in_the_readme_and_together_they_are_small():
    sizes = {path.name: path.stat().st_size for path in MODELS.glob("*.onnx")}
    assert sizes == {file: size for file, (size, _) in README.items()}
    assert sizes.keys() == NODES.keys()
    assert sum(sizes.values()) < 3_000_000


@pytest.mark.parametrize("file", NODES)
def test_top1_is_the_readmes_and_the_executor_agrees(file, digits):
    model = onnx.load(MODELS / file)
    assert NODES[file].items() <= Counter(node.op_type for node in model.graph.node).items()
    session = onnxruntime.InferenceSession(str(MODELS / file), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    (scores,) = session.run(["logits"], {"image": digits["image"]})
    right = np.count_nonzero(scores.argmax(1) == digits["labels"])
    assert right >= round(README[file][1] * len(scores))
    with torch.inference_mode():
        ours = Executor(model).run({"image": torch.from_numpy(digits["image"])})["logits"].numpy()
    np.testing.assert_allclose(ours, scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("file", NODES)
def test_a_fifth_of_the_bytes_keeps_the_accuracy(file, tmp_path):
    data = str(MODELS / "digits.py")
    result = quantize(
        MODELS / file,
        f"{data}:calibration",
        size=0.2,
        output=tmp_path / file,
        evaluation=f"{data}:test",
        options=SensitivityOptions(relative_error=0.2, samples=64),
        tune="none",
    )
    assert (tmp_path / file).stat().st_size == result.bytes <= README[file][0] // 5
    assert result.verification.metric == "top1"
    assert result.verification.drop <= 0.008  # four images
    assert not result.sensitivity.left_float
