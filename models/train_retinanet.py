"""Trains retinanet.py's small network on the scenes of scenes.py, and exports it.

Run from the repository's root, AMQ_DATA set (benchmarks/README.md): `python models/train_retinanet.py -o
retinanet_small.onnx`. Forty minutes on one core that multiplies bfloat16.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from anchors import SMALL, Floats, encode, overlaps
from detection_metric import average_precisions
from retinanet import RetinaNet, export_detector, retinanet_small
from scenes import SIDE, scenes, test
from torch import Tensor, nn

SEED = 0
BATCH = 32
RATE = 2e-3
DECAY = 0.05
# An anchor that overlaps an object by this much is to find it; one that overlaps all by less, to find nothing.
_OBJECT, _GROUND = 0.5, 0.4
_REPORT = 100


def targets(labels: Floats, anchors: Floats) -> tuple[Tensor, Tensor]:
    """Class of each anchor [n, anchors], -1 for ground and -2 for neither, and its object's offsets [n, anchors, 4].

    labels: [n, objects, 5] as scenes gives them. The anchor that overlaps an object most is for it in any case.
    """
    shared = overlaps(labels[..., 1:], anchors)
    shared[labels[..., 0] < 0] = -1
    nearest, most = shared.argmax(1), shared.max(1)
    kinds = np.where(most >= _OBJECT, 0, np.where(most < _GROUND, -1, -2))
    scene, number = np.nonzero(labels[..., 0] >= 0)
    best = shared.argmax(2)[scene, number]
    nearest[scene, best], kinds[scene, best] = number, 0
    objects = np.take_along_axis(labels, nearest[..., None], 1)
    kinds = np.where(kinds == 0, objects[..., 0], kinds).astype(np.int64)
    offsets = np.where(
        kinds[..., None] >= 0, encode(np.where(kinds[..., None] >= 0, objects[..., 1:], anchors), anchors), 0
    )
    return torch.from_numpy(kinds), torch.from_numpy(offsets.astype(np.float32))


def focal_loss(scores: Tensor, kinds: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss (arXiv 1708.02002, equation 5) of logits [n, anchors, classes], by the number of objects' anchors."""
    truth = torch.zeros_like(scores).scatter_(
        2, kinds.clamp_min(0)[..., None], (kinds >= 0)[..., None].to(scores.dtype)
    )
    entropy = nn.functional.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    probability = torch.sigmoid(scores)
    missed = torch.where(truth > 0, 1 - probability, probability)
    weight = torch.where(truth > 0, alpha, 1 - alpha) * missed**gamma
    return (weight * entropy)[kinds > -2].sum() / (kinds >= 0).sum().clamp_min(1)


def box_loss(offsets: Tensor, wanted: Tensor, kinds: Tensor) -> Tensor:
    """Smooth L1 of the offsets [n, anchors, 4] of anchors of objects, summed over x, y, width and height."""
    chosen = kinds >= 0
    return nn.functional.smooth_l1_loss(
        offsets[chosen], wanted[chosen], reduction="sum", beta=0.5
    ) / chosen.sum().clamp_min(1)


def train(count: int) -> RetinaNet:
    """A network trained on `count` scenes, each seen once, with a one-cycle schedule; bfloat16 but for parameters."""
    torch.manual_seed(SEED)
    network = retinanet_small().train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    anchors = SMALL.boxes(SIDE, SIDE)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, count // BATCH, pct_start=0.15)
    start, total = time.process_time(), np.zeros(2)
    for step, batch in enumerate(scenes("training", count // BATCH * BATCH, seed=0, size=BATCH), 1):
        kinds, wanted = targets(batch["labels"], anchors)
        images = torch.from_numpy(batch["input"]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            scores, offsets = network(images)
        losses = torch.stack([focal_loss(scores.float(), kinds), box_loss(offsets.float(), wanted, kinds)])
        optimizer.zero_grad()
        losses.sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        total += losses.detach().numpy()
        if step % _REPORT == 0:
            scored, placed = total / _REPORT
            spent = time.process_time() - start
            print(f"{step * BATCH} scenes: scores {scored:.3f}, boxes {placed:.3f}, {spent:.0f} s", flush=True)
            total[:] = 0
    return network.eval().to(memory_format=torch.contiguous_format)


def main() -> None:
    """Train, export, and print what the file reaches in onnxruntime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=200_000, help="scenes to train on (default: 200,000)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = train(arguments.scenes)
    export_detector(network, arguments.output, SIDE)
    session = onnxruntime.InferenceSession(str(arguments.output), providers=["CPUExecutionProvider"])
    batches = list(test())
    found = [session.run(["scores", "boxes"], {"input": batch["input"]}) for batch in batches]
    scores, boxes = (np.concatenate(part) for part in zip(*found, strict=True))
    labels = np.concatenate([batch["labels"] for batch in batches])
    average, half = average_precisions({"scores": scores, "boxes": boxes}, labels)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{arguments.output}: {parameters:,} parameters, AP {average:.3f}, AP50 {half:.3f} of {len(labels)} test scenes"
    )


if __name__ == "__main__":
    main()
