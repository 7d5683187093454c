"""Lanczos against exact spectra."""

import numpy as np
import pytest
import torch

from amq_onnx.curvature.lanczos import Lanczos, SpectrumSearch


def matrix_of(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return basis @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ basis.T


def top(eigenvalues, count, **options):
    matrix = matrix_of(eigenvalues)
    search = SpectrumSearch(len(matrix), count, torch.Generator().manual_seed(1), **options)
    while not search.done():
        search.process.add(matrix @ search.process.direction)
    return search.result()


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.geomspace(1, 1e-6, 200),
        np.concatenate([-np.geomspace(3, 0.5, 8), np.geomspace(5, 1, 8), np.linspace(-0.1, 0.1, 184)]),
        np.linspace(1, 2, 60),
    ],
    ids=["decaying", "both signs", "crowded"],
)
def test_top_eigenvalues_are_within_the_errors_they_claim(eigenvalues):
    found = top(eigenvalues, 10, relative_error=1e-3, max_products=len(eigenvalues))
    exact = eigenvalues[np.argsort(-np.abs(eigenvalues))][:10]
    assert found.converged
    assert (np.abs(found.values - exact) <= found.errors + 1e-10).all()
    assert (found.errors <= 1e-3 * abs(exact[0])).all()


def test_few_products_are_enough_where_few_eigenvalues_stand_out():
    found = top(np.concatenate([[100, -60, 30], np.linspace(-1, 1, 397)]), 3, relative_error=1e-3)
    assert found.converged and found.products < 20
    np.testing.assert_allclose(found.values, [100, -60, 30], rtol=1e-3)


def test_too_few_products_are_reported():
    found = top(np.linspace(1, 2, 300), 20, relative_error=1e-6, max_products=25)
    assert not found.converged and found.products == 25


def test_a_matrix_smaller_than_what_is_asked_gives_all_it_has():
    found = top(np.array([3.0, -2.0, 1.0]), 20)
    np.testing.assert_allclose(found.values, [3, -2, 1], atol=1e-12)
    assert found.converged and found.products == 3


def test_a_multiple_eigenvalue_counts_once_and_ends_the_process():
    found = top(np.array([4.0] * 5 + [1.0] * 5), 4)
    np.testing.assert_allclose(found.values, [4, 1], atol=1e-10)
    assert found.converged and found.products == 2
    zero = top(np.zeros(6), 2)
    np.testing.assert_array_equal(zero.values, [0])


def test_the_quadrature_has_the_moments_of_the_spectrum():
    eigenvalues = np.concatenate([np.geomspace(10, 1, 20), np.linspace(-0.5, 0.5, 380)])
    matrix = matrix_of(eigenvalues)
    found = []
    for seed in range(60):
        search = SpectrumSearch(400, 400, torch.Generator().manual_seed(seed), max_products=12)
        while not search.done():
            search.process.add(matrix @ search.process.direction)
        found.append(search.result())
        assert found[-1].weights.sum() == pytest.approx(1) and (np.diff(found[-1].points) > 0).all()
    for degree in (1, 2, 3, 4):
        means = [(each.weights * each.points**degree).sum() for each in found]
        assert np.mean(means) == pytest.approx((eigenvalues**degree).mean(), rel=0.2)
    share = np.mean([each.weights[each.points > 0.9].sum() for each in found])
    assert share == pytest.approx(0.05, abs=0.015)
    assert np.mean([each.trace for each in found]) == pytest.approx(eigenvalues.sum(), rel=0.2)


def test_one_start_is_exact_for_polynomials_of_that_start():
    matrix = matrix_of(np.geomspace(1, 1e-3, 30))
    start = torch.randn(30, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    process = Lanczos(start)
    for _ in range(4):
        process.add(matrix @ process.direction)
    found, unit = process.ritz(), start / start.norm()
    for degree in range(8):
        exact = float(unit @ torch.linalg.matrix_power(matrix, degree) @ unit)
        assert (found.weights * found.values**degree).sum() == pytest.approx(exact, rel=1e-9)
