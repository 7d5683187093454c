"""Spectra of symmetric matrices that are known only by their products with vectors.

Lanczos builds a tridiagonal matrix whose eigenvalues, the Ritz values, run to the extreme eigenvalues first, and tells
how far each may be off (Golub and Van Loan 2013, Matrix Computations, section 10.1). From random starts, Ritz values
with the squares of their vectors' first components are a quadrature of the whole spectral density (Ubaru, Chen and Saad
2017, SIAM J. Matrix Anal. Appl. 38, 1075).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.curvature.draws import rademacher_like

# What is left of a vector after all directions before are taken out, relative to its size, that is rounding alone.
_NOTHING = 1e-10


@dataclass(frozen=True, eq=False)
class RitzValues:
    """Approximate eigenvalues from one start.

    values: rising. residuals: an eigenvalue lies within this distance of each. weights: squares of the first components
    of their vectors in the tridiagonal matrix; they add up to 1.
    """

    values: NDArray[np.float64]
    residuals: NDArray[np.float64]
    weights: NDArray[np.float64]


class Lanczos:
    """The process from one start: products with `direction` go to `add`. Every direction is kept and made orthogonal to
    all before.

    start: float64 [n]; memory is that of one such vector a product.
    """

    def __init__(self, start: Tensor) -> None:
        self._directions: list[Tensor] = [start.double() / start.double().norm()]
        self._diagonal: list[float] = []
        self._beside: list[float] = []
        self.finished = False

    @property
    def products(self) -> int:
        """How many were added."""
        return len(self._diagonal)

    @property
    def direction(self) -> Tensor:
        """What the matrix is to be multiplied with next, float64 [n], of length 1."""
        return self._directions[-1]

    def add(self, product: Tensor) -> None:
        """The matrix times `direction`. After as many as the start has different eigenvalues nothing is left."""
        found = product.double()
        self._diagonal.append(float(self.direction @ found))
        size = float(found.norm())
        for direction in 2 * self._directions:  # once leaves what rounding brought back
            found = found - (direction @ found) * direction
        rest = float(found.norm())
        self.finished = self.products == found.numel() or rest <= _NOTHING * size
        self._beside.append(0.0 if self.finished else rest)
        if not self.finished:
            self._directions.append(found / rest)

    def ritz(self) -> RitzValues:
        """What is known after the products so far, of which there must be one."""
        inner = self._beside[:-1]
        matrix = np.diag(self._diagonal) + np.diag(inner, 1) + np.diag(inner, -1)
        values, vectors = np.linalg.eigh(matrix)
        return RitzValues(values, np.abs(vectors[-1]) * self._beside[-1], np.square(vectors[0]))


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What is known of one matrix of `size` rows.

    values: the eigenvalues of largest magnitude, largest first; a multiple one counts once. errors: how far each may be
    off. points, weights: sum of f(point) * weight is close to the mean of f over all eigenvalues. products: what they
    took. converged: whether every error is as small as asked.
    """

    size: int
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    points: NDArray[np.float64]
    weights: NDArray[np.float64]
    products: int
    converged: bool

    @property
    def trace(self) -> float:
        """The sum of all eigenvalues, as the quadrature has it."""
        return float(self.size * (self.points * self.weights).sum())


class SpectrumSearch:
    """Lanczos from a random start, until the `count` eigenvalues of largest magnitude are known to `relative_error` of
    the largest, or after `max_products`; of a matrix with fewer rows, all."""

    def __init__(
        self,
        size: int,
        count: int,
        generator: torch.Generator,
        *,
        relative_error: float = 0.01,
        max_products: int = 100,
    ) -> None:
        self.size = size
        self.count = min(count, size)
        self.relative_error = relative_error
        self.max_products = max_products
        self.process = Lanczos(rademacher_like(torch.zeros(size, dtype=torch.float64), generator))

    def done(self) -> bool:
        """Whether no product is wanted any more."""
        if not self.process.products:
            return False
        return self.process.finished or self.process.products >= self.max_products or self.result().converged

    def result(self) -> Spectrum:
        """What is known so far."""
        found = self.process.ritz()
        order = np.argsort(-np.abs(found.values), kind="stable")[: self.count]
        values, errors = found.values[order], found.residuals[order]
        enough = len(values) == self.count and bool((errors <= self.relative_error * abs(values[0])).all())
        return Spectrum(
            self.size,
            values,
            errors,
            found.values,
            found.weights,
            self.process.products,
            enough or self.process.finished,
        )
