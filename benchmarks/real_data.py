"""Calibration and test images of the shared data folder that AMQ_DATA names, for `--data real_data.py:function`."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Batch = dict[str, NDArray[np.generic]]
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_DEVIATION = np.array([0.229, 0.224, 0.225], np.float32)
_CHUNK = 100
_VALIDATION = 1000
_CLASSES = 10


def data_folder() -> Path:
    """The folder with models and images; exits with a sentence if AMQ_DATA doesn't name one."""
    folder = Path(os.environ.get("AMQ_DATA", ""))
    if not (folder / "cifar10_32.npz").is_file():
        sys.exit("set AMQ_DATA to the folder with the benchmark models and data (benchmarks/README.md)")
    return folder


def _pictures(file: str, split: str) -> Iterator[Image.Image]:
    """The pictures of an archive of JPEGs."""
    with np.load(data_folder() / file, allow_pickle=False) as archive:
        blob, offsets = archive[f"{split}_jpeg"].tobytes(), archive[f"{split}_offsets"]
    for start, end in pairwise(offsets):
        yield Image.open(io.BytesIO(blob[start:end])).convert("RGB")


def photographs(split: str) -> Iterator[Image.Image]:
    """ImageNet's, 224x224: 400 to calibrate on, 600 to test with."""
    return _pictures("imagenet_sample_224.npz", split)


def _images(file: str, split: str, limit: int | None = None, *, first: int = 0, labels: bool) -> Iterator[Batch]:
    """Batches of normalised images [n, 3, H, W] of an archive of JPEGs, from number `first` to `limit`."""
    with np.load(data_folder() / file, allow_pickle=False) as archive:
        classes = archive[f"{split}_labels"][first:limit]
    pictures = islice(_pictures(file, split), first, None)
    for start in range(0, len(classes), _CHUNK):
        pixels = list(islice(pictures, min(_CHUNK, len(classes) - start)))
        scaled = (np.stack([np.asarray(image) for image in pixels]).astype(np.float32) / 255 - _MEAN) / _DEVIATION
        batch: Batch = {"input": np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))}
        if labels:
            batch["labels"] = classes[start : start + _CHUNK].astype(np.int64)
        yield batch


def resnet20_calibration() -> Iterator[Batch]:
    """512 CIFAR-10 training images without labels."""
    return _images("cifar10_32.npz", "train", 512, labels=False)


def resnet20_training() -> Iterator[Batch]:
    """The 20,000 CIFAR-10 training images with their labels."""
    return _images("cifar10_32.npz", "train", labels=True)


def flips_and_shifts(batch: Batch, generator: np.random.Generator) -> Batch:
    """Each image, perhaps mirrored, moved by up to an eighth of its size; for `--augment`."""
    images = batch["input"]
    margin = images.shape[2] // 8
    padded = np.pad(images, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="reflect")
    moved = np.empty_like(images)
    for index, (top, left) in enumerate(generator.integers(0, 2 * margin + 1, (len(images), 2))):
        moved[index] = padded[index, :, top : top + images.shape[2], left : left + images.shape[3]]
    mirrored = generator.random(len(images)) < 0.5
    moved[mirrored] = moved[mirrored, :, :, ::-1]
    return {**batch, "input": moved}


def flips_shifts_and_patches(batch: Batch, generator: np.random.Generator) -> Batch:
    """`flips_and_shifts`, and half of the images with a rectangle of another one, and their labels with its share of it
    (CutMix, Yun et al. 2019, arXiv 1905.04899); for `--augment`."""
    whole = flips_and_shifts(batch, generator)["input"]
    own = np.eye(_CLASSES, dtype=np.float32)[batch["labels"]]
    images, shares, sides = whole.copy(), own.copy(), np.array(whole.shape[2:])
    for index, other in enumerate(generator.permutation(len(images))):
        size = sides * np.sqrt(generator.random()) if generator.random() < 0.5 else np.zeros(2)
        start = generator.integers(0, sides) - size / 2
        (top, left), (bottom, right) = (np.clip(np.rint(ends), 0, sides).astype(int) for ends in (start, start + size))
        images[index, :, top:bottom, left:right] = whole[other, :, top:bottom, left:right]
        share = (bottom - top) * (right - left) / sides.prod()
        shares[index] = (1 - share) * own[index] + share * own[other]
    return {"input": images, "labels": shares}


def resnet20_test() -> Iterator[Batch]:
    """The 10,000 CIFAR-10 test images."""
    return _images("cifar10_32.npz", "test", labels=True)


def resnet20_validation() -> Iterator[Batch]:
    """1,000 of the test images, to judge by while another network is scored on the others."""
    return _images("cifar10_32.npz", "test", _VALIDATION, labels=True)


def resnet20_other_test() -> Iterator[Batch]:
    """The other 9,000."""
    return _images("cifar10_32.npz", "test", first=_VALIDATION, labels=True)


def mobilenetv2_calibration() -> Iterator[Batch]:
    """400 ImageNet images without labels."""
    return _images("imagenet_sample_224.npz", "calibration", labels=False)


def mobilenetv2_test() -> Iterator[Batch]:
    """The other 600 ImageNet images."""
    return _images("imagenet_sample_224.npz", "test", labels=True)
