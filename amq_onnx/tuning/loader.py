"""Shuffled training batches of a dataset, with room for augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from amq_onnx.errors import AMQError, DataError, UsageError
from amq_onnx.model.data import LABELS, Batch, Dataset, load_function

Augmentation = Callable[[Batch, np.random.Generator], Batch]
"""Given a batch and a source of random numbers, another batch of the same inputs; class numbers among its `labels` may
become shares of classes, of one more dimension."""

# Samples are shuffled among as many as fit in this memory; data that fit whole are read once.
_PIECE_BYTES = 2_000_000_000


class Loader:
    """Batches for training, in an order that follows from the seed and the epoch alone.

    batch_size: of all processes together; that of the model, where it is fixed. rank, size: this process and how many
    there are; each gets its share of every batch. What is left over after the last whole batch of an epoch is left out,
    where there is a whole one.
    mix: mix every sample with another one of the batch, in shares that differ (mixup, Zhang et al. 2018, arXiv
    1710.09412), where there are float inputs. augment: applied after that to each process's share, differently in every
    epoch.
    """

    def __init__(
        self,
        data: Dataset,
        batch_size: int,
        seed: int,
        augment: Augmentation | None = None,
        rank: int = 0,
        size: int = 1,
        mix: bool = False,
    ) -> None:
        self.data = data
        self.batch_size = data.fixed_batch() or batch_size
        self.seed = seed
        self.augment = augment
        self.rank = rank
        self.size = size
        self.mix = mix
        self._held: list[Batch] | None = None

    def batches(self) -> int:
        """How many batches an epoch has."""
        return sum(len(self._cuts(self.data.count(piece))) for piece in self._pieces())

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of one epoch: this process's share of each."""
        generator = np.random.default_rng([self.seed, number])
        for piece in self._pieces():
            order = generator.permutation(self.data.count(piece))
            for index, (start, stop) in enumerate(self._cuts(len(order))):
                chosen = order[start:stop]
                batch = self.data.picked(piece, chosen[self.rank :: self.size])
                if self.mix and self.data.mixable(batch):
                    partners, shares = generator.permutation(chosen), generator.random(len(chosen), np.float32)
                    others = self.data.picked(piece, partners[self.rank :: self.size])
                    batch = self.data.mixed(batch, others, shares[self.rank :: self.size])
                yield batch if self.augment is None else self._augmented(batch, number, index)

    def _cuts(self, samples: int) -> list[tuple[int, int]]:
        if samples < self.batch_size:
            return [(0, samples)] if samples >= self.size else []
        return [(start, start + self.batch_size) for start in range(0, samples - self.batch_size + 1, self.batch_size)]

    def _augmented(self, batch: Batch, number: int, index: int) -> Batch:
        assert self.augment is not None
        try:
            found = self.augment(dict(batch), np.random.default_rng([self.seed, number, index, self.rank]))
        except AMQError:
            raise
        except Exception as error:
            raise DataError(f"the augmentation failed: {type(error).__name__}: {error}") from error
        checked: Batch = {}
        for name, array in batch.items():
            given = found.get(name) if isinstance(found, dict) else None
            if not isinstance(given, np.ndarray) or not (given.shape == array.shape or _shares(name, given, array)):
                raise DataError(f"the augmentation must return '{name}' as an array of shape {array.shape}")
            kind = array.dtype if given.shape == array.shape else np.dtype(np.float32)
            checked[name] = given.astype(kind, copy=False)
        return checked

    def _pieces(self) -> Iterator[Batch]:
        """The data, as few batches as memory allows; all of them are kept where they fit."""
        if self._held is not None:
            yield from self._held
            return
        row = sum(array.nbytes for array in next(self.data.batches(1)).values())
        held: list[Batch] = []
        total = 0
        for piece in self.data.batches(max(self.batch_size, _PIECE_BYTES // max(1, row))):
            total += sum(array.nbytes for array in piece.values())
            held = [*held, piece] if total <= _PIECE_BYTES else []
            yield piece
        if total <= _PIECE_BYTES:
            self._held = held


def _shares(name: str, given: NDArray[np.generic], numbers: NDArray[np.generic]) -> bool:
    """Whether `given` are shares of classes, in place of class numbers."""
    return name == LABELS and given.dtype.kind == "f" and given.ndim == numbers.ndim + 1 and len(given) == len(numbers)


def load_augmentation(where: str) -> Augmentation:
    """The function that `script.py:function` names. Raises UsageError or DataError where there is none."""
    script, _, name = where.rpartition(":")
    if not script.endswith(".py") or not name:
        raise UsageError(f"--augment '{where}' is no function: write script.py:function")
    return load_function(script, name)
