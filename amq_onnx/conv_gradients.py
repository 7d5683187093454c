"""Gradients of a Conv's weight by sample, which autograd only adds up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.windows import windows
from amq_onnx.layout import pixels

# Gradients of so many samples are held at a time.
_BYTES = 64 << 20


def weight_gradients(node: NodeContext, x: Tensor, gradient: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """Gradients of sum(gradient * Conv(x, weight)) in the weight, some samples at a time: each [samples, *weight's].

    x: [N, C, *spatial]. gradient: [N, M, *places]. weight: [M, C, *kernel], so that all input channels meet all
    outputs: one group. A gradient takes as many products as the convolution.
    """
    kernel = weight.shape[2:]
    step = max(1, _BYTES // (weight.numel() * weight.element_size()))
    for first in range(0, len(x), step):
        some = slice(first, first + step)
        pulled = pixels(gradient[some]).transpose(1, 2)
        seen = windows(node, x[some], kernel)
        found = pulled.new_empty(len(pulled), *weight.shape)
        # [*kernel, N, C, *places] and [*kernel, N, M, C], views.
        last, front = tuple(range(-len(kernel), 0)), tuple(range(len(kernel)))
        at, into = seen.movedim(last, front), found.movedim(last, front)
        for place in itertools.product(*map(range, kernel)):
            into[place] = torch.bmm(pulled, pixels(at[place]))
        yield found
