"""Trains one of the networks of cifar_networks.py on 32x32 images with labels, and exports it.

Run from the repository's root: `python models/train_cifar.py inception --data SCRIPT.py:FUNCTION --test
SCRIPT.py:FUNCTION -o inception.onnx`. The functions yield batches {"input": [n, 3, 32, 32], "labels": [n]}. Half an
hour or more on one core that multiplies bfloat16.

`--teacher FILE.onnx`, a network of the same input and classes, lets its scores join the labels (knowledge distillation,
Hinton et al. 2015, arXiv 1503.02531, section 2): of few images a small network learns more from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cifar_networks
import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from amq_onnx.exporting import export
from amq_onnx.model.data import load_function

SEED = 0
BATCH = 128
MARGIN = 4
# Distillation: the softmax's temperature, and the share of the loss that comes from the labels.
TEMPERATURE = 2.0
LABEL_SHARE = 0.3


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. `rate` is the highest learning rate of its schedule."""

    network: Callable[[], nn.Module]
    rate: float = 0.2
    epochs: int = 60
    decay: float = 1e-3


RECIPES = {
    "residual": Recipe(cifar_networks.residual),
    "inception": Recipe(cifar_networks.inception),
    "squeezenext": Recipe(cifar_networks.squeezenext, decay=5e-4),
}


def load(where: str) -> tuple[Tensor, Tensor]:
    """All images and labels that SCRIPT.py:FUNCTION yields."""
    script, _, function = where.rpartition(":")
    batches: list[dict[str, Any]] = list(load_function(script, function)())
    images = np.concatenate([batch["input"] for batch in batches])
    return torch.from_numpy(images), torch.from_numpy(np.concatenate([batch["labels"] for batch in batches]))


def augmented(images: Tensor) -> Tensor:
    """Each image mirrored or not, moved by up to four pixels."""
    count, channels, height, width = images.shape
    padded = nn.functional.pad(images, (MARGIN,) * 4, mode="reflect")
    top = torch.randint(0, 2 * MARGIN + 1, (count, 1)) + torch.arange(height)
    left = torch.randint(0, 2 * MARGIN + 1, (count, 1)) + torch.arange(width)
    left = torch.where(torch.rand(count, 1) < 0.5, left.flip(1), left)
    samples = torch.arange(count)[:, None, None, None]
    return padded[samples, torch.arange(channels)[None, :, None, None], top[:, None, :, None], left[:, None, None]]


class Criterion:
    """The loss of scores [n, 10]: cross entropy of smoothed labels; with a teacher, divergence from its scores too."""

    def __init__(self, teacher: Path | None) -> None:
        self.session = None if teacher is None else session(teacher)

    def __call__(self, batch: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """The mean over the batch."""
        if self.session is None:
            return nn.functional.cross_entropy(scores, labels, label_smoothing=0.1)
        expected = torch.from_numpy(self.session.run(None, {"input": batch.contiguous().numpy()})[0])
        divergence = nn.functional.kl_div(
            (scores / TEMPERATURE).log_softmax(1),
            (expected / TEMPERATURE).log_softmax(1),
            reduction="batchmean",
            log_target=True,
        )
        labelled = nn.functional.cross_entropy(scores, labels)
        return LABEL_SHARE * labelled + (1 - LABEL_SHARE) * TEMPERATURE**2 * divergence


def session(path: Path) -> onnxruntime.InferenceSession:
    """An onnxruntime session of a file, with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def train(recipe: Recipe, images: Tensor, labels: Tensor, criterion: Criterion) -> nn.Module:
    """A network trained on images [n, 3, 32, 32], with a one-cycle schedule; in bfloat16 but for the parameters."""
    torch.manual_seed(SEED)
    network = recipe.network().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = recipe.epochs * (len(images) // BATCH)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.rate, momentum=0.9, weight_decay=recipe.decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, steps, pct_start=0.2)
    start = time.process_time()
    for epoch in range(recipe.epochs):
        total = 0.0
        for chosen in torch.randperm(len(images))[: len(images) // BATCH * BATCH].split(BATCH):
            batch = augmented(images[chosen])
            with torch.autocast("cpu", torch.bfloat16):
                scores = network(batch.contiguous(memory_format=torch.channels_last))
            loss = criterion(batch, scores.float(), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean = total / (len(images) // BATCH)
        print(f"epoch {epoch + 1}: loss {mean:.3f}, {time.process_time() - start:.0f} s", flush=True)
    return network.eval().to(memory_format=torch.contiguous_format)


def main() -> None:
    """Train, export, and print what the file reaches in onnxruntime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=RECIPES)
    parser.add_argument("--data", required=True, metavar="SCRIPT.py:FUNCTION", help="training images and labels")
    parser.add_argument("--test", required=True, metavar="SCRIPT.py:FUNCTION", help="test images and labels")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--teacher", type=Path, metavar="FILE.onnx", help="a network whose scores join the labels")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.network]
    if arguments.epochs is not None:
        recipe = Recipe(recipe.network, recipe.rate, arguments.epochs, recipe.decay)
    network = train(recipe, *load(arguments.data), Criterion(arguments.teacher))
    export(network, arguments.output, inputs={"input": (1, 3, 32, 32)}, opset=20)
    images, labels = load(arguments.test)
    written = session(arguments.output)
    found = [written.run(None, {"input": part.numpy()})[0].argmax(1) for part in images.split(250)]
    top1 = float((np.concatenate(found) == labels.numpy()).mean())
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(f"{arguments.output}: {parameters:,} parameters, top-1 {top1:.4f} of {len(labels):,} test images")


if __name__ == "__main__":
    main()
