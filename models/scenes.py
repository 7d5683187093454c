"""Scenes for a detector: one to four CIFAR-10 images of several sizes on textured ground of 128x128 px.

The objects are real photographs, so their ten classes are as hard to tell apart as they are in CIFAR-10; ground and
places are drawn from a seed. Test scenes hold test images only. The images are those of the folder that AMQ_DATA names
(benchmarks/README.md). For `amq`: `--data models/scenes.py:calibration --eval models/scenes.py:test`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from amq_onnx.model.data import load_function

Batch = dict[str, NDArray[np.generic]]

SIDE = 128
MOST_OBJECTS = 4
CALIBRATION_SCENES = 256
TEST_SCENES = 500
_BATCH = 50
_SMALLEST, _LARGEST = 18, 56
_WIDEST = 4 / 3
# Share of the smaller of two objects that the other may cover.
_OVERLAP = 0.15
_TRIES = 20
_OCTAVES = (2, 4, 8, 16, 32, 128)
_REAL_DATA = str(Path(__file__).resolve().parent.parent / "benchmarks" / "real_data.py")


def calibration() -> Iterator[Batch]:
    """256 scenes of training images, without labels."""
    for batch in scenes("training", CALIBRATION_SCENES, seed=1):
        yield {"input": batch["input"]}


def test() -> Iterator[Batch]:
    """500 scenes of test images, with labels."""
    return scenes("test", TEST_SCENES, seed=2)


def scenes(split: str, count: int, seed: int, size: int = _BATCH) -> Iterator[Batch]:
    """`count` scenes of the images of `split`, training or test, in batches of `size`; the same for the same seed.

    `input` [n, 3, 128, 128], normalised as the images are; `labels` [n, 4, 5], an object a row: class, x1, y1, x2, y2
    in pixels, and rows of -1 where a scene has fewer than four.
    """
    images, classes = _images(split)
    for start in range(0, count, size):
        generator = np.random.default_rng([seed, start])
        number = min(size, count - start)
        canvas = _ground(images, number, generator)
        labels = np.full((number, MOST_OBJECTS, 5), -1, np.float32)
        for scene in range(number):
            boxes = _places(generator)
            for row, box in enumerate(boxes):
                chosen = int(generator.integers(len(images)))
                _paste(canvas[scene], images[chosen], box, generator)
                labels[scene, row] = [classes[chosen], *box]
        yield {"input": canvas.numpy(), "labels": labels}


@cache
def _images(split: str) -> tuple[Tensor, NDArray[np.int64]]:
    """All images [n, 3, 32, 32] of a split and their classes."""
    batches = list(load_function(_REAL_DATA, f"resnet20_{split}")())
    images = np.concatenate([batch["input"] for batch in batches])
    return torch.from_numpy(images), np.concatenate([batch["labels"] for batch in batches])


def _ground(images: Tensor, count: int, generator: np.random.Generator) -> Tensor:
    """Noise of several coarsenesses over an image that is either blurred beyond recognition or cut up, [n, 3, H, W]."""
    ground = torch.zeros(count, 3, SIDE, SIDE)
    for octave in _OCTAVES:
        # Mostly grey, as in photographs.
        noise = 0.4 * generator.standard_normal((count, 3, octave, octave), np.float32)
        noise += generator.standard_normal((count, 1, octave, octave), np.float32)
        strength = generator.exponential(0.5 / octave**0.3, (count, 1, 1, 1)).astype(np.float32)
        ground += interpolate(torch.from_numpy(noise * strength), (SIDE, SIDE), mode="bicubic")
    for scene, chosen in enumerate(generator.integers(len(images), size=count)):
        image = images[chosen]
        if generator.random() < 0.5:
            few = int(generator.integers(2, 6))
            image = interpolate(image[None], (few, few), mode="area")[0]
        else:
            image = _cut_up(image, int(generator.choice([4, 8])), generator)
        ground[scene] += interpolate(image[None], (SIDE, SIDE), mode="bicubic")[0] * float(generator.uniform(0, 1))
    return ground.clamp_(-2.1, 2.6)


def _cut_up(image: Tensor, tile: int, generator: np.random.Generator) -> Tensor:
    """The image's square tiles in another order."""
    channels, height, width = image.shape
    tiles = image.reshape(channels, height // tile, tile, width // tile, tile).permute(1, 3, 0, 2, 4).flatten(0, 1)
    mixed = tiles[torch.from_numpy(generator.permutation(len(tiles)))]
    mixed = mixed.reshape(height // tile, width // tile, channels, tile, tile)
    return mixed.permute(2, 0, 3, 1, 4).reshape(channels, height, width)


def _places(generator: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """One to four boxes that overlap little."""
    boxes: list[tuple[int, int, int, int]] = []
    wanted = int(generator.integers(1, MOST_OBJECTS + 1))
    for _ in range(_TRIES):
        side = np.exp(generator.uniform(np.log(_SMALLEST), np.log(_LARGEST)))
        stretch = np.exp(generator.uniform(-0.5, 0.5) * np.log(_WIDEST))
        width, height = round(side * stretch), round(side / stretch)
        x, y = generator.integers(0, (SIDE - width + 1, SIDE - height + 1))
        box = (int(x), int(y), int(x) + width, int(y) + height)
        if all(_covered(box, other) <= _OVERLAP for other in boxes):
            boxes.append(box)
        if len(boxes) == wanted:
            break
    return boxes


def _covered(box: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> float:
    """Share of the smaller box that the other covers."""
    width = max(0, min(box[2], other[2]) - max(box[0], other[0]))
    height = max(0, min(box[3], other[3]) - max(box[1], other[1]))
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (box, other)]
    return width * height / min(areas)


def _paste(canvas: Tensor, image: Tensor, box: tuple[int, int, int, int], generator: np.random.Generator) -> None:
    """Put the image into the box, perhaps mirrored, with corners rounded more or less and soft edges."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if generator.random() < 0.5:
        image = image.flip(2)
    resized = interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]
    resized = resized * float(generator.uniform(0.8, 1.2)) + float(generator.uniform(-0.2, 0.2))
    # A superellipse: 2 would be an ellipse, infinity the rectangle.
    power = float(generator.uniform(3, 10))
    x = (torch.arange(width) + 0.5) / width * 2 - 1
    y = (torch.arange(height) + 0.5) / height * 2 - 1
    radius = (x.abs()[None] ** power + y.abs()[:, None] ** power) ** (1 / power)
    opacity = ((1 - radius) * min(width, height) / 2 + 0.5).clamp(0, 1)
    part = canvas[:, top:bottom, left:right]
    part += opacity * (resized - part)
