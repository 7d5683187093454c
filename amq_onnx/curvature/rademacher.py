"""Random signs."""

from __future__ import annotations

import torch
from torch import Tensor


def rademacher_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """+1 or -1 with equal chance, in the shape, type and place of `tensor`.

    Drawn on the CPU, so that the same seed gives the same probe on every device.
    """
    bits = torch.randint(0, 2, tensor.shape, generator=generator, dtype=torch.int8)
    return bits.to(device=tensor.device, dtype=tensor.dtype).mul_(2).sub_(1)
