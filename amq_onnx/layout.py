"""How the numbers of images lie in memory: those of a channel, or those of a pixel, side by side.

Convolutions make pixels, and what is computed of these keeps them. Dimensions stay [N, C, H, W] either way; what walks
over all numbers of a tensor is quick in the order of memory alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def channels_last(x: Tensor) -> Tensor:
    """x [N, C, H, W], with the channels of a pixel side by side.

    torch's convolutions on CPUs take .5 to .95 of the time so, those of few channels or of one a group the least.
    """
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def pixels(images: Tensor) -> Tensor:
    """Images [N, C, *spatial] as [N, pixels, C]; no copy where a pixel's channels are side by side."""
    return images.movedim(1, -1).reshape(len(images), -1, images.shape[1])


def has_pixels(x: Tensor) -> bool:
    """Whether x isn't laid out in the order of its dimensions, as images with their channels last aren't."""
    return x.dim() == 4 and not x.is_contiguous()


def in_memory_order(x: Tensor) -> Tensor:
    """x, as [N, H, W, C] where that is the order of its memory."""
    return x.movedim(1, -1) if has_pixels(x) else x


def ordered_alike(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape, as [N, H, W, C] where that is the order of the first one's memory."""
    return (x.movedim(1, -1), y.movedim(1, -1)) if has_pixels(x) else (x, y)


def inner(x: Tensor, y: Tensor) -> Tensor:
    """The sum of x * y, of one shape, without making the product."""
    x, y = ordered_alike(x, y)
    return torch.dot(x.reshape(-1), y.reshape(-1))


def mean_of_samples(x: Tensor) -> Tensor:
    """The mean over the first dimension, which stays as a one."""
    if has_pixels(x):
        return x.movedim(1, -1).mean(0, keepdim=True).movedim(-1, 1)
    return x.mean(0, keepdim=True)
