"""Training by several processes at once, each on its share of every batch (torchrun)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")


def is_first() -> bool:
    """True in the process that writes files and speaks; there is no other unless torchrun started several."""
    return int(os.environ.get("RANK", "0")) == 0


class Processes:
    """The processes that torchrun started (RANK and WORLD_SIZE say so), or this one alone."""

    def __init__(self, device: str = "cpu") -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0")) if self.size > 1 else 0
        if self.size > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        if self.size == 1:
            return
        held = list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in held])
        dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for tensor in held:
            tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
            start += tensor.numel()

    def from_first(self, value: Value) -> Value:
        """The first process's `value`, in all of them."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held)
        return held[0]
