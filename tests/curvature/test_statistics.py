"""Running means against numpy, and random signs."""

import numpy as np
import pytest
import torch

from amq_onnx.curvature.draws import rademacher_like
from amq_onnx.curvature.statistics import UnitMeans, falling, ratio_estimate, shrunk, sum_with_error


@pytest.mark.parametrize("offset", [0.0, 1e9])
def test_means_and_errors_are_numpys(offset):
    draws = np.random.default_rng(0).standard_normal((7, 5)) + offset + np.arange(5)
    means = UnitMeans()
    for row in draws:
        for unit, value in enumerate(row):
            means.add(unit, value)
    variances = draws.var(axis=0, ddof=1) / len(draws)
    np.testing.assert_allclose(means.means(), draws.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(means.variances(), variances, rtol=1e-5 if offset else 1e-12)
    assert means.total() == pytest.approx(draws.mean(axis=0).sum(), rel=1e-14)
    assert means.standard_error() == pytest.approx(np.sqrt(variances.sum()), rel=1e-5 if offset else 1e-12)


def test_units_may_have_different_numbers_of_draws():
    means = UnitMeans()
    for unit, value in [(0, 1.0), (1, 5.0), (0, 3.0), (1, 5.0), (0, 8.0)]:
        means.add(unit, value)
    np.testing.assert_allclose(means.means(), [4.0, 5.0])
    np.testing.assert_allclose(means.variances(), [np.var([1, 3, 8], ddof=1) / 3, 0.0])


def test_a_unit_drawn_once_makes_the_error_infinite():
    means = UnitMeans()
    for unit, value in [(0, 1.0), (0, 2.0), (1, 3.0)]:
        means.add(unit, value)
    assert means.standard_error() == np.inf
    assert means.total() == 4.5


def test_no_draws_sum_to_zero():
    assert UnitMeans().total() == 0.0
    assert UnitMeans().standard_error() == 0.0


def test_estimates_are_shrunk_by_the_share_of_chance_in_their_spread():
    """Of noisy estimates of known numbers the shrunk ones are nearer, and by about as much as can be."""
    rng = np.random.default_rng(1)
    truth = rng.normal(5, 1, 4000)
    for noise in (0.1, 1.0, 3.0):
        found = truth + noise * rng.standard_normal(4000)
        better = shrunk(found, np.full(4000, noise**2))
        assert better.mean() == pytest.approx(found.mean())
        assert np.square(better - truth).mean() == pytest.approx(noise**2 / (1 + noise**2), rel=0.1)


def test_what_one_batch_alone_says_is_shrunk_to_the_mean():
    """Channels that matter on a single batch of 32 each, and channels that happened to matter on none."""
    units = np.zeros((32, 100))
    units[np.arange(32), np.arange(32)] = 1.0
    found = shrunk(units.sum(0), 32 * units.var(0, ddof=1))
    assert found.max() < 1.6 * found.mean()
    assert found.min() > 0.7 * found.mean()


def test_shrinking_without_a_spread_or_variances():
    np.testing.assert_array_equal(shrunk(np.full(3, 2.0), np.zeros(3)), 2.0)
    np.testing.assert_array_equal(shrunk(np.array([1.0, 3.0]), None), 2.0)
    np.testing.assert_array_equal(shrunk(np.array([7.0]), np.array([1.0])), 7.0)


def test_signs_are_fair_independent_and_follow_the_seed():
    tensor = torch.empty(200, 300, dtype=torch.float64)
    signs = rademacher_like(tensor, torch.Generator().manual_seed(3))
    assert signs.dtype == tensor.dtype
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / np.sqrt(signs.numel())
    neighbours = float((signs[:, 1:] * signs[:, :-1]).mean())
    assert abs(neighbours) < 4 / np.sqrt(signs.numel())
    assert torch.equal(signs, rademacher_like(tensor, torch.Generator().manual_seed(3)))
    assert not torch.equal(signs, rademacher_like(tensor, torch.Generator().manual_seed(4)))


def test_a_sum_and_its_error_over_the_units():
    rng = np.random.default_rng(0)
    sums = [sum_with_error(rng.exponential(size=40)) for _ in range(4000)]
    totals, errors = np.array(sums).T
    assert totals.std() == pytest.approx(np.sqrt(np.square(errors).mean()), rel=0.05)
    assert sum_with_error(np.array([3.0])) == (3.0, np.inf)


def test_a_ratio_tells_the_exact_sum_from_a_few_units():
    rng = np.random.default_rng(0)
    cheap = rng.exponential(size=200) ** 2
    noisy = cheap * 0.6 * rng.uniform(0.8, 1.2, 200)
    found = []
    for _ in range(2000):
        chosen = rng.choice(200, 40, replace=False)
        found.append(ratio_estimate(cheap, noisy[chosen], chosen)[0])
    assert np.mean(found) == pytest.approx(noisy.sum(), rel=0.01)
    plain = [noisy[rng.choice(200, 40, replace=False)].sum() * 5 for _ in range(2000)]
    assert np.std(found) < 0.2 * np.std(plain)


def test_errors_of_ratios_are_true():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(3000):
        cheap = rng.exponential(size=80)
        exact = cheap * rng.uniform(0.3, 0.9, 80)
        chosen = rng.choice(80, 20, replace=False)
        found.append(ratio_estimate(cheap, exact[chosen], chosen))
    totals, errors = np.array(found).T
    assert totals.std() == pytest.approx(np.sqrt(np.square(errors).mean()), rel=0.1)


def test_ratios_of_all_units_and_of_nothing():
    exact = np.array([1.0, 2.0, 4.0])
    everything = np.arange(3)
    assert ratio_estimate(np.array([2.0, 1.0, 1.0]), exact, everything) == pytest.approx(sum_with_error(exact))
    value, _ = ratio_estimate(np.zeros(6), exact, everything)
    assert value == 14.0


def test_falling_estimates_stay():
    found = {2: (4.0, 1.0), 3: (1.0, 0.1), 4: (0.2, 0.0), 8: (0.0, 0.0)}
    assert falling(found) == found
    nothing = {2: (0.0, 0.0), 3: (0.0, 0.0)}
    assert falling(nothing) == nothing


def test_a_wider_width_never_loses_more():
    """Pooled estimates keep their weighted geometric mean, less a tenth a bit; the surest one moves least."""
    found = falling({2: (9.0, 0.9), 3: (1.0, 0.1), 4: (4.0, 0.4), 6: (0.1, 0.01)}, least=1.0)
    assert found == {2: (9.0, 0.9), 3: (pytest.approx(2.0), 0.1), 4: (pytest.approx(2.0), 0.4), 6: (0.1, 0.01)}
    tilted = falling({3: (1.0, 0.1), 5: (4.0, 0.4)}, least=2.0)
    assert tilted[3][0] == pytest.approx(4.0)
    assert tilted[5][0] == pytest.approx(1.0)
    sure = falling({3: (1.0, 0.01), 4: (4.0, 4.0)}, least=1.0)
    assert sure[4][0] == pytest.approx(1.0, rel=1e-3)
    unknown = falling({3: (1.0, 0.5), 4: (4.0, float("inf")), 5: (0.0, 0.0)}, least=1.0)
    assert unknown[4][0] == pytest.approx(1.0)
    assert unknown[5] == (0.0, 0.0)


def test_falling_estimates_are_those_of_least_squares():
    """Against a search: no falling sequence of logarithms is nearer to the estimates."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        values, errors = rng.uniform(0.5, 2, 4), rng.uniform(0.1, 0.5, 4)
        found = falling(dict(enumerate(zip(values, errors * values, strict=True))), least=1.0)
        ours = np.log([found[bits][0] for bits in range(4)])
        assert (np.diff(ours) <= 1e-12).all()

        def distance(logs, values=values, errors=errors):
            return np.square((logs - np.log(values)) / errors).sum()

        moved = ours + 0.05 * rng.standard_normal((3000, 4))
        moved = moved[(np.diff(moved) <= 0).all(1)]
        assert min(map(distance, moved), default=np.inf) >= distance(ours)
