"""Random signs and classes, which follow from a generator alone."""

from __future__ import annotations

import torch
from torch import Tensor


def rademacher_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """+1 or -1 with equal chance, in the shape, type and place of `tensor`.

    Drawn on the CPU, so that the same seed gives the same probe on every device.
    """
    bits = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return bits.to(device=tensor.device, dtype=tensor.dtype).mul_(2).sub_(1)


def draw_classes(chance: Tensor, generator: torch.Generator) -> Tensor:
    """A class for each row of chances [rows, classes] (which add up to 1), int64 [rows, 1].

    By the inverse of the distribution function: torch.multinomial draws differently under other settings of the
    process, and a seed must mean the same probes.
    """
    share = torch.rand(len(chance), 1, generator=generator, dtype=torch.float64)
    edges = chance.double().cumsum(1)
    return torch.searchsorted(edges, share * edges[:, -1:], right=True).clamp_max(chance.shape[1] - 1)
