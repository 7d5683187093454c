"""Intervals of drops against scipy, brute-force likelihoods and their own coverage."""

import itertools
import math

import numpy as np
import pytest
from scipy import optimize, stats

from amq_onnx.runtime.confidence import DisagreementDrop, MeanDrop, PairedDrop, student_quantile

Z = stats.norm.ppf(0.975)


def score_statistic(lost, gained, count, delta):
    """The score test's statistic, the nuisance share found by maximising the likelihood numerically."""

    def negative(share):
        both = 1 - 2 * share - delta
        terms = [(lost, share + delta), (gained, share), (count - lost - gained, both)]
        return -sum(n * math.log(max(p, 1e-300)) for n, p in terms if n)

    low, high = max(0.0, -delta), (1 - delta) / 2
    share = optimize.minimize_scalar(negative, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    variance = count * (2 * share + delta - delta**2)
    return (lost - gained - count * delta) / math.sqrt(variance)


@pytest.mark.parametrize(("lost", "gained", "count"), [(7, 3, 50), (1, 4, 30), (40, 10, 100), (3, 3, 200)])
def test_the_paired_interval_ends_where_the_score_test_rejects(lost, gained, count):
    low, high = PairedDrop(count, lost, gained).interval()
    assert low < (lost - gained) / count < high
    assert score_statistic(lost, gained, count, low) == pytest.approx(Z, abs=1e-3)
    assert score_statistic(lost, gained, count, high) == pytest.approx(-Z, abs=1e-3)


def test_the_paired_interval_turns_round_with_the_models():
    low, high = PairedDrop(60, 9, 2).interval()
    assert PairedDrop(60, 2, 9).interval() == pytest.approx((-high, -low))


@pytest.mark.parametrize("count", [1, 10, 500])
def test_models_that_never_differ_may_still(count):
    high = Z**2 / (count + Z**2)
    assert PairedDrop(count, 0, 0).interval() == pytest.approx((-high, high))


@pytest.mark.parametrize("shares", [(0.15, 0.05), (0.3, 0.3), (0.1, 0.02)])
def test_the_paired_interval_covers_as_often_as_it_says(shares):
    """The chance, summed over all outcomes, that the interval of 30 samples holds the true drop."""
    count, covered = 30, 0.0
    for lost, gained in itertools.product(range(count + 1), repeat=2):
        if lost + gained <= count:
            chance = stats.multinomial.pmf([lost, gained, count - lost - gained], count, [*shares, 1 - sum(shares)])
            low, high = PairedDrop(count, lost, gained).interval()
            covered += chance * (low <= shares[0] - shares[1] <= high)
    assert 0.93 < covered < 0.985


@pytest.mark.parametrize(("lost", "count"), [(0, 20), (3, 20), (20, 20), (17, 4000)])
def test_wilson(lost, count):
    wanted = stats.binomtest(lost, count).proportion_ci(method="wilson")
    assert DisagreementDrop(count, lost).interval() == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_student():
    drops = np.random.default_rng(0).exponential(0.01, 25)
    wanted = stats.t.interval(0.95, 24, drops.mean(), drops.std(ddof=1) / 5)
    assert MeanDrop(25, drops.mean(), drops.std(ddof=1)).interval() == pytest.approx(wanted, rel=1e-4)
    assert MeanDrop(1, 0.5, 0.0).interval() == (-math.inf, math.inf)
    for freedom, off in ((2, 0.01), (4, 1e-3), (30, 1e-6)):
        assert student_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=off)


@pytest.mark.parametrize(
    ("estimate", "most"),
    [(PairedDrop(500, 6, 2), 0.01), (PairedDrop(32, 0, 0), 0.01), (DisagreementDrop(100, 1), 0.02),
     (MeanDrop(64, 0.001, 0.01), 0.002)],
)  # fmt: skip
def test_samples_that_would_settle_it(estimate, most):
    needed = estimate.samples_for(most)
    assert estimate.interval(needed)[1] <= most < estimate.interval(0.85 * needed)[1]
    assert estimate.interval()[1] > most


def test_no_number_of_samples_settles_a_drop_on_the_bound():
    assert PairedDrop(100, 1, 0).samples_for(0.01) is None


def test_shares_are_exact():
    """.994 - .984 is above .01, the quotient that it stands for is not."""
    assert PairedDrop(500, 7, 2).drop == 0.01
