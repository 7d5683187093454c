"""Trains one of the networks of digits_networks.py on the digits and exports it.

Run from the repository's root: `python models/train_digits.py resnet`, or inception, squeezenext, transformer, lstm.
A minute or two on one CPU core; the same machine and versions give the same file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from digits import Batch, split
from digits_networks import DigitsInception, DigitsLSTM, DigitsResNet, DigitsSqueezeNext, DigitsTransformer
from torch import Tensor, nn

from amq_onnx.passes.strip import drop_source_lines, strip_exporter_metadata

SEED = 0
BATCH = 64
HERE = Path(__file__).parent

_SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=5e-4, nesterov=True)
_ADAMW = partial(torch.optim.AdamW, weight_decay=0.05)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained and exported. `rate` is the highest learning rate of its schedule."""

    network: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer] = _SGD
    rate: float = 0.1
    epochs: int = 40
    opset: int = 20
    bare: bool = False  # without all that strip_exporter_metadata drops; other files are as the exporter writes them


RECIPES = {
    "resnet": Recipe(DigitsResNet, opset=18, bare=True),
    "inception": Recipe(DigitsInception),
    "squeezenext": Recipe(DigitsSqueezeNext, rate=0.05, epochs=60),
    "transformer": Recipe(DigitsTransformer, _ADAMW, 2e-3, 60),
    "lstm": Recipe(DigitsLSTM, _ADAMW, 5e-3, 80),
}


def train(recipe: Recipe, images: Tensor, labels: Tensor) -> nn.Module:
    """A network trained on images [n, 1, 8, 8], with small shifts of them and a one-cycle schedule."""
    torch.manual_seed(SEED)
    network = recipe.network().train()
    steps = recipe.epochs * (len(images) // BATCH)
    optimizer = recipe.optimizer(network.parameters(), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, steps, pct_start=0.2)
    background = images.min()
    for _ in range(recipe.epochs):
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


def export(network: nn.Module, path: Path, opset: int, bare: bool) -> None:
    """Write the network to `path`, by torch's exporter, with a free batch dimension.

    The exporter notes for every node which source lines it comes from. Their paths are this machine's, so they
    are left out; `bare` also leaves out everything else that no run depends on.
    """
    batch = torch.export.Dim("batch")
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "exported.onnx"
        torch.onnx.export(
            network,
            (torch.zeros(2, 1, 8, 8),),
            str(exported),
            dynamo=True,
            external_data=False,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: batch}},
            verbose=False,
        )
        model = onnx.load(exported)
    drop_source_lines(model)
    if bare:
        model = strip_exporter_metadata(model)
        del model.metadata_props[:]
        del model.graph.metadata_props[:]
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def logits(path: Path, images: Batch) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Scores [n, 10] that onnxruntime computes with the file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (scores,) = session.run(["logits"], {"image": images["image"]})
    return scores


def main() -> None:
    """Train, export, compare the file with the network, and print what the file reaches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=RECIPES)
    parser.add_argument("-o", "--output", type=Path, help="default: models/digits_NETWORK.onnx")
    parser.add_argument("--opset", type=int, help="default: the shipped file's, 18 for resnet and 20 for others")
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.network]
    path = arguments.output or HERE / f"digits_{arguments.network}.onnx"
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in the same order on every machine; the tensors are too small for more
    learned, held_out = split()
    network = train(recipe, torch.from_numpy(learned["image"]), torch.from_numpy(learned["labels"]))
    export(network, path, arguments.opset or recipe.opset, recipe.bare)
    with torch.inference_mode():
        expected = network(torch.from_numpy(held_out["image"])).numpy()
    scores = logits(path, held_out)
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4, err_msg=f"{path} differs from the network")
    training, test = (
        float((found.argmax(1) == images["labels"]).mean())
        for found, images in ((logits(path, learned), learned), (scores, held_out))
    )
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{path}: {parameters:,} parameters, {path.stat().st_size:,} bytes, accuracy {training:.4f} on training "
        f"and {test:.4f} on the 500 test images"
    )


if __name__ == "__main__":
    main()
