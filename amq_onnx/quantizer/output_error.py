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
# Share of the factor's rows that are looked at first, where it has many: of moments, those of the largest eigenvalues.
_FRONT_SHARE = 8
_FEW_ROWS = 32


class OutputError:
    """The mean squared error of each output channel.

    factor: float32 [groups, rows, elements], F with F'F = E[xx'] of what the weights of a group's channels meet; a
    group's channels follow one another. ridge: float32 [groups], added to the diagonal of F'F.
    """

    def __init__(self, factor: NDArray[np.float32], ridge: NDArray[np.float32]) -> None:
        self.factor = factor
        self.ridge = ridge
        front = factor.shape[1] // _FRONT_SHARE if factor.shape[1] > _FEW_ROWS else factor.shape[1]
        # [groups, elements, rows], as they are multiplied with.
        self._front, self._rest = (
            np.ascontiguousarray(part.transpose(0, 2, 1)) for part in (factor[:, :front], factor[:, front:])
        )

    @classmethod
    def from_rows(cls, rows: NDArray[np.float32], centred: bool) -> OutputError:
        """From inputs themselves, [groups, inputs, elements]. centred: as if they had no mean."""
        if centred:
            rows = rows - rows.mean(1, keepdims=True)
        factor = (rows / np.sqrt(max(1, rows.shape[1]))).astype(np.float32)
        ridge = np.square(factor, dtype=np.float64).sum(1).mean(1) * _RIDGE
        return cls(factor, ridge.astype(np.float32))

    @classmethod
    def from_spectrum(cls, values: NDArray[np.float64], vectors: NDArray[np.float64]) -> OutputError:
        """From the eigenvalues of E[xx'], rising, [groups, elements], and its eigenvectors, which are the columns of
        [groups, elements, elements]."""
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

    def moments(self, group: int) -> NDArray[np.float64]:
        """E[xx'] of a group, with the ridge, float64 [elements, elements]."""
        factor = self.factor[group].astype(np.float64)
        return np.asarray(factor.T @ factor + float(self.ridge[group]) * np.eye(factor.shape[1]))

    def product(self, left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
        """left' E[xx'] right of each channel, [channels]; both are [channels, elements]."""
        one, other = self._grouped(left), self._grouped(right)
        shared = self.ridge[:, None] * np.einsum("gcn,gcn->gc", one, other)
        for part in (self._front, self._rest):
            projected = np.matmul(one, part)
            shared += np.einsum("gcr,gcr->gc", projected, projected if right is left else np.matmul(other, part))
        return np.asarray(shared.reshape(-1), np.float64)

    def below(self, rows: NDArray[np.float32], limits: NDArray[np.float64]) -> NDArray[np.float64]:
        """product(rows, rows) of the channels where it is below `limits`, [channels]; of others that or infinity.

        The ridge and a few of the factor's rows say of most channels that they are above, so that the others, which
        nearly all of the work is for, are only looked at for the rest.
        """
        grouped = self._grouped(rows)
        shared = self.ridge[:, None] * np.einsum("gcn,gcn->gc", grouped, grouped)
        shared += _squares(np.matmul(grouped, self._front))
        if self._rest.shape[2]:
            open_channels = shared < limits.reshape(shared.shape)
            for group, chosen in enumerate(open_channels):
                shared[group, chosen] += _squares(np.matmul(grouped[group, chosen], self._rest[group]))
            shared[~open_channels] = np.inf
        return np.asarray(shared.reshape(-1), np.float64)

    def _grouped(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return rows.reshape(self.groups, -1, rows.shape[1])


def _squares(projected: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums of squares over the last dimension."""
    return np.asarray(np.einsum("...r,...r->...", projected, projected))
