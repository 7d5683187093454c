"""Whole networks against onnxruntime; they run when AMQ_DATA names the folder of the shared models."""

import os
from pathlib import Path

import onnx
import pytest
import torch

from amq_onnx.executor.interpreter import Executor

from .graphs import onnxruntime_outputs, relative_error

DATA = os.environ.get("AMQ_DATA")
pytestmark = pytest.mark.skipif(not DATA, reason="AMQ_DATA doesn't name the folder of the shared models")


def error_of(proto, size, optimize=True):
    executor = Executor(proto)
    (image,), (score,) = executor.inputs, executor.outputs
    x = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = executor.run({image: x})[score].numpy()
    return relative_error(ours, onnxruntime_outputs(proto, {image: x.numpy()}, optimize)[0])


@pytest.mark.parametrize(("name", "size"), [("resnet20_cifar10_op20", 32), ("mobilenetv2_imagenet_op20", 224)])
def test_shared_model(name, size):
    assert error_of(onnx.load(Path(DATA or "") / f"{name}.onnx"), size) < 1e-4


@pytest.mark.parametrize("opset", [18, 20, 25])
@pytest.mark.parametrize(
    ("module", "name", "size"),
    [("resnet", "resnet50", 224), ("inceptionv3", "inceptionv3", 299), ("squeezenext", "sqnxt23_w1", 224)],
)
def test_pytorchcv(module, name, size, opset):
    pytest.importorskip("onnxscript")
    models = pytest.importorskip(f"pytorchcv.models.{module}")
    from .exported import export

    torch.manual_seed(0)
    network = getattr(models, name)().eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # statistics unlike those of a fresh network
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.8, 1.2)
    assert error_of(export(network, torch.randn(2, 3, size, size), opset), size) < 1e-4
