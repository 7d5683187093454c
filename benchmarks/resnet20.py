"""ResNet20 as an ordinary torch module with the weights of the ONNX file, for tools that need one, and its images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from real_data import Batch, data_folder, resnet20_calibration
from torch import Tensor, nn
from torch.nn.functional import pad, relu

_TRAINING_IMAGES = 128


class _Block(nn.Module):
    """Two convolutions and a shortcut without weights: it drops every other pixel and pads with channels of zeros."""

    def __init__(self, before: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // before
        self.conv1 = nn.Conv2d(before, channels, 3, self.stride, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1:
            more = self.conv1.out_channels - x.shape[1]
            shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, more // 2, more - more // 2))
        return relu(self.conv2(relu(self.conv1(x))) + shortcut)


class ResNet20(nn.Module):
    """Images [n, 3, 32, 32] to scores [n, 10]; BatchNormalization is folded, as in the file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        self.layer1 = nn.Sequential(*(_Block(16, 16) for _ in range(3)))
        self.layer2 = nn.Sequential(*(_Block(before, 32) for before in (16, 32, 32)))
        self.layer3 = nn.Sequential(*(_Block(before, 64) for before in (32, 64, 64)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of a batch."""
        features = self.layer3(self.layer2(self.layer1(relu(self.conv1(x)))))
        return self.linear(features.mean((2, 3)))


def load_resnet20(path: Path) -> ResNet20:
    """The network with the initializers of the file, whose names are the module's (a Conv's bias: WEIGHT_bias)."""
    model = onnx.load(path)
    values = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    network = ResNet20().eval()
    state = {
        name: values[name] if name in values else values[name.removesuffix("bias") + "weight_bias"]
        for name in network.state_dict()
    }
    network.load_state_dict(state)
    return network


def training_images() -> Iterator[Batch]:
    """128 CIFAR-10 training images with their labels, in one batch."""
    images = np.concatenate([batch["input"] for batch in resnet20_calibration()])[:_TRAINING_IMAGES]
    with np.load(data_folder() / "cifar10_32.npz", allow_pickle=False) as archive:
        yield {"input": images, "labels": archive["train_labels"][:_TRAINING_IMAGES].astype(np.int64)}
