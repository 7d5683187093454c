"""Anchors of a detector: where they lie, and boxes as offsets from them.

Boxes are x1, y1, x2, y2 in pixels. Offsets are those of Faster R-CNN (Ren et al. 2015, section 3.1.2): the centre's in
sizes of the anchor, the size's as a logarithm, both divided by what is usual, so that most are about 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_USUAL = np.array([0.1, 0.1, 0.2, 0.2], np.float32)
# A box may be e^4 times as large as its anchor; beyond that a wild offset would overflow.
_LARGEST = 4.0


@dataclass(frozen=True)
class Anchors:
    """Squares and oblongs around every place of each level (Lin et al. 2017, arXiv 1708.02002, section 4).

    strides: pixels from place to place, by level. sizes: side of a square of equal area, in strides. ratios: height by
    width. A place has len(sizes) * len(ratios) of them.
    """

    strides: tuple[int, ...]
    sizes: tuple[float, ...]
    ratios: tuple[float, ...]

    @property
    def places(self) -> int:
        """Anchors at one place."""
        return len(self.sizes) * len(self.ratios)

    def boxes(self, height: int, width: int) -> Floats:
        """All anchors of an image, [anchors, 4]: level by level, row by row, place by place, in the heads' order."""
        return np.concatenate([self._level(stride, height, width) for stride in self.strides])

    def _level(self, stride: int, height: int, width: int) -> Floats:
        shapes = np.array([(size / ratio**0.5, size * ratio**0.5) for size in self.sizes for ratio in self.ratios])
        half = shapes * stride / 2
        # A convolution of stride 2 rounds up.
        rows, columns = -(-height // stride), -(-width // stride)
        y, x = np.meshgrid((np.arange(rows) + 0.5) * stride, (np.arange(columns) + 0.5) * stride, indexing="ij")
        centres = np.stack([x, y], 2)[:, :, None]
        return np.concatenate([centres - half, centres + half], 3).reshape(-1, 4).astype(np.float32)


FULL = Anchors((8, 16, 32, 64, 128), (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)), (0.5, 1, 2))
"""The paper's: P3 to P7."""

SMALL = Anchors((4, 8, 16), (4, 4 * 2 ** (1 / 3), 4 * 2 ** (2 / 3)), (1,))
"""Squares on three levels, for scenes of 128x128 px."""


def encode(boxes: Floats, anchors: Floats) -> Floats:
    """Offsets [..., 4] of boxes [..., 4] from anchors [..., 4]: x, y, logarithms of width and height."""
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    return np.concatenate([(centre - anchor_centre) / anchor_size, np.log(size / anchor_size)], -1) / _USUAL


def decode(offsets: Floats, anchors: Floats) -> Floats:
    """Boxes [..., 4] that `encode` gave these offsets [..., 4]."""
    anchor_centre, anchor_size = _centre_and_size(anchors)
    scaled = offsets * _USUAL
    centre = scaled[..., :2] * anchor_size + anchor_centre
    half = np.exp(np.minimum(scaled[..., 2:], _LARGEST)) * anchor_size / 2
    return np.concatenate([centre - half, centre + half], -1)


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of boxes [..., n, 4] with others [..., m, 4], [..., n, m]."""
    first, second = boxes[..., :, None, :], others[..., None, :, :]
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    shared = np.clip(sides, 0, None).prod(-1)
    return shared / (_area(first) + _area(second) - shared)


def _centre_and_size(boxes: Floats) -> Sequence[Floats]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def _area(boxes: Floats) -> Floats:
    return (boxes[..., 2:] - boxes[..., :2]).prod(-1)
