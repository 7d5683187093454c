"""What one block is trained on: its inputs and what the float block makes of them, a few samples at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from amq_onnx.curvature.losses import Loss
from amq_onnx.curvature.sample_axis import per_sample
from amq_onnx.layout import has_pixels, in_memory_order
from amq_onnx.model.heads import Head


@dataclass(frozen=True)
class Chunk:
    """A few samples.

    feeds: the graph's inputs. quantized, floating: the tensor that the blocks before hand on, as quantized and as float
    ones make it; None for the first block. targets: the float block's outputs. importance: how much an error of each
    sample matters, [samples]; None for the last block. The targets hold outputs of its layers, too, where these count.
    """

    feeds: Mapping[str, Tensor]
    samples: int
    quantized: Tensor | None
    floating: Tensor | None
    targets: Mapping[str, Tensor]
    importance: Tensor | None

    def parts(self, size: int) -> list[Chunk]:
        """The same samples, up to `size` at a time; all at once where a tensor's first dimension doesn't count them."""
        tensors = [*self.feeds.values(), *self.targets.values(), self.quantized, self.floating, self.importance]
        if size >= self.samples or any(t is not None and (not t.ndim or len(t) != self.samples) for t in tensors):
            return [self]
        return [self._part(slice(start, start + size)) for start in range(0, self.samples, size)]

    def _part(self, chosen: slice) -> Chunk:
        def of(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[chosen]

        return replace(
            self,
            feeds={name: value[chosen] for name, value in self.feeds.items()},
            samples=len(range(*chosen.indices(self.samples))),
            quantized=of(self.quantized),
            floating=of(self.floating),
            targets={name: value[chosen] for name, value in self.targets.items()},
            importance=of(self.importance),
        )


@dataclass(frozen=True)
class BlockData:
    """All chunks of one block.

    input: name of the tensor that comes from the blocks before, None for the first block. outputs: names of the block's
    outputs. learned: initializers of the quantized graph that blocks before have learned and this one reads too.
    heads: of the last block, the network's outputs and their losses. layers: names of tensors inside it whose errors
    count as well.
    """

    input: str | None
    outputs: tuple[str, ...]
    learned: Mapping[str, Tensor]
    chunks: Sequence[Chunk]
    heads: Sequence[tuple[Head, Loss]] | None = None
    layers: tuple[str, ...] = ()

    def parts(self, size: int) -> BlockData:
        """The same samples in chunks of up to `size`."""
        return replace(self, chunks=[part for chunk in self.chunks for part in chunk.parts(size)])

    def values(self, chunk: Chunk, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """What the graph is given; with a `generator`, each element of the input from either network."""
        given = {**chunk.feeds, **self.learned}
        if self.input is not None:
            assert chunk.quantized is not None and chunk.floating is not None
            value = chunk.quantized
            if generator is not None and value.is_floating_point():
                # With shares of 0 and 1 lerp chooses, in a fifth of the time of torch.where.
                value = torch.lerp(value, chunk.floating, _coins(value, generator))
            given[self.input] = value
        return given

    def loss(self, chunk: Chunk, found: Mapping[str, Tensor]) -> Tensor:
        """Squared error of the block's output, weighted by sample; of the last block, the distance of the network's
        outputs."""
        if self.heads is not None:
            each = [loss.distance(chunk.targets[head.tensor], found[head.tensor]).mean() for head, loss in self.heads]
            return torch.stack(each).sum()
        assert chunk.importance is not None
        ((name, value),) = found.items()
        error = per_sample((value - chunk.targets[name]).square(), chunk.samples)
        return (error * chunk.importance.to(error.device)).mean().float()

    def layer_errors(self, chunk: Chunk, found: Mapping[str, Tensor]) -> Tensor:
        """Mean squared error of each of `layers`, [layers]."""
        return torch.stack([(found[name] - chunk.targets[name]).square().mean() for name in self.layers])


def _coins(like: Tensor, generator: torch.Generator) -> Tensor:
    """0 or 1 with even chances, in the shape of `like` and laid out as it is: the bits of random bytes, a tenth of the
    time of a draw an element."""
    count = like.numel()
    drawn = torch.randint(256, ((count + 7) // 8,), generator=generator, dtype=torch.uint8)
    coins = torch.from_numpy(np.unpackbits(drawn.numpy(), count=count)).to(like)
    ordered = coins.reshape(in_memory_order(like).shape)
    return ordered.movedim(-1, 1) if has_pixels(like) else ordered
