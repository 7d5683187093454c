"""A node of a graph together with what computes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.registry import Operator


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """A node with its operator, and the tensors that it reads.

    converts: which of these change dtype first, because of integer codes.
    """

    node: NodeContext
    operator: Operator
    converts: Mapping[int, torch.dtype]
    reads: tuple[str, ...]
