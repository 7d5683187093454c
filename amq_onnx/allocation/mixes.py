"""Widths for the channels of one tensor: which mixes of few widths are worth offering to the allocation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from amq_onnx.allocation.problem import Floats, Ints

# Widths in one mix. Each costs constants and nodes of its own, and a third one seldom pays for them.
_MOST_WIDTHS = 3


@dataclass(frozen=True, eq=False)
class _Walk:
    """From all channels at the least width of a mix to all at the most, the steepest fall of the loss per bit first.

    channel, bits: of each step, whose it is and how far it goes. size, loss: after so many steps, of the tensor.
    """

    least: int
    channel: Ints
    bits: Ints
    size: Floats
    loss: Floats

    def widths(self, steps: int, channels: int) -> tuple[int, ...]:
        """The width of each channel after so many steps."""
        found = np.full(channels, self.least)
        np.add.at(found, self.channel[:steps], self.bits[:steps])
        return tuple(found.tolist())


def channel_mixes(
    loss: Floats,
    widths: Sequence[int],
    elements: int,
    fixed: Callable[[tuple[int, ...]], float],
    most: int,
) -> list[tuple[int, ...]]:
    """Widths by channel of up to `most` mixes, none of them beaten in bytes and loss by a single width or another mix.

    With two widths the channels of the larger one are those whose loss it lowers most, so that sums over the sorted
    gains give the optimum for every number of them. With three, channels follow their convex hulls, which gives the
    optimum of every price of a byte. Of too many the ones kept are spread evenly over the bytes.

    Args:
        loss: what each channel adds at each width, shape [channels, widths].
        widths: rising.
        elements: of one channel.
        fixed: bytes that a set of widths takes beside its codes.
        most: how many mixes to return.
    """
    channels = len(loss)
    column = {bits: index for index, bits in enumerate(widths)}
    walks: list[_Walk] = []
    sizes = [np.array([fixed((bits,)) + channels * elements * bits / 8 for bits in widths])]
    losses = [loss.sum(0)]
    for count in range(2, min(_MOST_WIDTHS, channels) + 1):
        for mix in combinations(widths, count):
            walk = _walk(loss[:, [column[bits] for bits in mix]], mix, elements, fixed(mix))
            walks.append(walk)
            # The ends are single widths.
            sizes.append(walk.size[1:-1])
            losses.append(walk.loss[1:-1])
    size, total = np.concatenate(sizes), np.concatenate(losses)
    owner = np.repeat(np.arange(len(sizes)), [len(part) for part in sizes])
    steps = np.concatenate([np.arange(len(part)) for part in sizes]) + 1
    order = np.lexsort((owner, total, size))
    kept = np.ones(order.size, np.bool_)
    kept[1:] = total[order][1:] < np.minimum.accumulate(total[order])[:-1]
    best = order[kept]
    best = _spread(best[owner[best] > 0], size, most)
    found = [walks[owner[index] - 1].widths(int(steps[index]), channels) for index in best.tolist()]
    return [mix for mix in dict.fromkeys(found) if len(set(mix)) > 1]


def _walk(loss: Floats, mix: Sequence[int], elements: int, fixed: float) -> _Walk:
    """The walk of a mix; loss: [channels, widths of the mix]."""
    channels = len(loss)
    step = np.diff(np.array(mix))
    gain = -np.diff(loss, axis=1)
    bits = np.broadcast_to(step, gain.shape).copy()
    if len(mix) > 2:
        # A first step that gains less per bit than the second is never taken alone: both become one.
        joined = gain[:, 0] * step[1] < gain[:, 1] * step[0]
        gain[joined, 0] += gain[joined, 1]
        bits[joined, 0] += bits[joined, 1]
        gain[joined, 1], bits[joined, 1] = 0.0, 0
    taken = bits > 0
    channel = np.broadcast_to(np.arange(channels)[:, None], gain.shape)[taken]
    gain, bits = gain[taken], bits[taken]
    order = np.argsort(-gain / bits, kind="stable")
    channel, gain, bits = channel[order], gain[order], bits[order]
    size = fixed + elements / 8 * (channels * mix[0] + np.concatenate([[0], np.cumsum(bits)]))
    total = float(loss[:, 0].sum()) - np.concatenate([[0.0], np.cumsum(gain)])
    return _Walk(mix[0], channel, bits, size, total)


def _spread(index: Ints, size: Floats, most: int) -> Ints:
    """At most `most` of the candidates, in rising size, the nearest ones to evenly spaced sizes."""
    if index.size <= most:
        return index
    at = np.linspace(size[index[0]], size[index[-1]], most)
    return np.unique(index[np.clip(np.searchsorted(size[index], at), 0, index.size - 1)])
