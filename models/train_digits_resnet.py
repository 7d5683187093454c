"""Trains the residual network of digits_resnet.onnx and exports it.

Run from the repository's root: `python models/train_digits_resnet.py`. About a minute on two CPU cores; the
same machine and versions give the same file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import onnx
import onnxruntime
import torch
from digits import Batch, split
from torch import Tensor, nn

from amq_onnx.passes.strip import strip_exporter_metadata

SEED = 0
EPOCHS = 40
BATCH = 64
OPSET = 18
HERE = Path(__file__).parent


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, a 1x1 convolution where the shape changes."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(wider)
        self.conv2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(wider)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != wider:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, after its last ReLU."""
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


class DigitsResNet(nn.Module):
    """A residual network for 8x8 images: three stages of two blocks, 12, 24 and 40 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.stages = nn.Sequential(
            nn.Sequential(Block(12, 12, 1), Block(12, 12, 1)),
            nn.Sequential(Block(12, 24, 2), Block(24, 24, 1)),
            nn.Sequential(Block(24, 40, 2), Block(40, 40, 1)),
        )
        self.classifier = nn.Linear(40, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores of the ten digits."""
        features = self.stages(self.stem(image))
        return self.classifier(features.mean((2, 3)))


def train(images: Tensor, labels: Tensor) -> DigitsResNet:
    """A network trained with stochastic gradient descent, small shifts of the images, a cosine schedule."""
    torch.manual_seed(SEED)
    network = DigitsResNet().train()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps, pct_start=0.2)
    background = images.min()
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            padded = nn.functional.pad(images[chosen], (1, 1, 1, 1), value=float(background))
            row, column = torch.randint(0, 3, (2,)).tolist()
            shifted = padded[:, :, row : row + 8, column : column + 8]
            loss = nn.functional.cross_entropy(network(shifted), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(network: DigitsResNet, path: Path) -> None:
    """Write the network with a free batch dimension, without the exporter's records of source lines."""
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported.onnx"
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, 8, 8),),
            str(exported),
            dynamo=True,
            external_data=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: batch}},
        )
        model = strip_exporter_metadata(onnx.load(exported))
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def accuracy(path: Path, images: Batch) -> float:
    """Share of `images` that the file classifies rightly in onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": images["image"]})
    return float((scores.argmax(1) == images["labels"]).mean())


def main() -> None:
    """Train, export, and print what the file reaches."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "digits_resnet.onnx")
    path = parser.parse_args().output
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in the same order on every machine; the tensors are too small for more
    learned, held_out = split()
    network = train(torch.from_numpy(learned["image"]), torch.from_numpy(learned["labels"]))
    export(network, path)
    print(
        f"{path}: {path.stat().st_size:,} bytes, accuracy {accuracy(path, learned):.4f} on training "
        f"and {accuracy(path, held_out):.4f} on the 500 test images"
    )


if __name__ == "__main__":
    main()
