"""What an error of a layer's weights does to its outputs, from the second moments of its inputs.

Weights w that meet inputs x give w'x, and weights that are off by d give outputs that are off by d'x, on average over
the data d' E[xx'] d squared (Nagel et al. 2020, arXiv 2004.10568, equation 10). ||d||^2 is that for inputs of the same
size that have nothing to do with one another, which neighbouring pixels and the channels of a network never are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# What every input has of its own, in units of their mean square: moments of few inputs leave directions out in which
# an error would seem to be free.
_RIDGE = 0.05
# Share of the inputs' mean square in directions of which only the ridge knows: there are many of them.
_LEFT_OUT = 0.002


class OutputError:
    """The mean squared error of each output channel.

    factor: float32 [groups, rows, elements], F with F'F = E[xx'] of what the weights of a group's channels meet; a
    group's channels follow one another. ridge: float32 [groups], added to the diagonal of F'F.
    """

    def __init__(self, factor: NDArray[np.float32], ridge: NDArray[np.float32]) -> None:
        self.factor = factor
        self.ridge = ridge

    @classmethod
    def from_rows(cls, rows: NDArray[np.float32], centred: bool) -> OutputError:
        """From inputs themselves, [groups, inputs, elements]. centred: as if they had no mean."""
        if centred:
            rows = rows - rows.mean(1, keepdims=True)
        factor = (rows / np.sqrt(max(1, rows.shape[1]))).astype(np.float32)
        ridge = np.square(factor, dtype=np.float64).sum(1).mean(1) * _RIDGE
        return cls(factor, ridge.astype(np.float32))

    @classmethod
    def from_moments(cls, moments: NDArray[np.float64], means: NDArray[np.float64], centred: bool) -> OutputError:
        """From E[xx'], [groups, elements, elements], and E[x], [groups, elements]. centred: as if x had no mean."""
        if centred:
            moments = moments - means[:, :, None] * means[:, None, :]
        values, vectors = np.linalg.eigh(moments)
        values = np.maximum(values[:, ::-1], 0)
        total = values.sum(1, keepdims=True)
        rows = max(1, int((values.cumsum(1) < (1 - _LEFT_OUT) * total).sum(1).max()) + 1)
        factor = np.sqrt(values[:, :rows, None]) * vectors[:, :, ::-1].transpose(0, 2, 1)[:, :rows]
        ridge = values.mean(1) * _RIDGE
        return cls(factor.astype(np.float32), ridge.astype(np.float32))

    @property
    def groups(self) -> int:
        """How many groups of channels meet inputs of their own."""
        return len(self.factor)

    def of_groups(self, first: int, last: int) -> OutputError:
        """That of some groups."""
        return OutputError(self.factor[first:last], self.ridge[first:last])

    def product(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
        """left' E[xx'] right of each channel, [channels]; both are [channels, elements]."""
        one = self._projected(left)
        other = one if right is left else self._projected(right)
        shared = np.einsum("gcr,gcr->gc", one, other) + self.ridge[:, None] * np.einsum(
            "gcn,gcn->gc", self._grouped(left), self._grouped(right)
        )
        return np.asarray(shared.reshape(-1), np.float64)

    def _grouped(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows.reshape(self.groups, -1, rows.shape[1])

    def _projected(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(np.matmul(self._grouped(rows), self.factor.transpose(0, 2, 1)))
