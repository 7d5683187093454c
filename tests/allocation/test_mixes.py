"""Mixes of widths for the channels of one tensor, against every assignment of small ones."""

import itertools
import time

import numpy as np
import pytest

from amq_onnx.allocation import Problem, channel_mixes, frontier, solve

WIDTHS = (2, 3, 5, 8)
ELEMENTS = 24


def losses(seed, channels, *, rough=False):
    """Errors that fall like 4^-bits, of channels a hundred times apart; rough: neither convex nor monotone."""
    rng = np.random.default_rng(seed)
    loss = 10.0 ** rng.uniform(-1, 1, (channels, 1)) * 4.0 ** -np.array(WIDTHS)
    return loss * rng.lognormal(0, 0.8, loss.shape) if rough else loss


def fixed(mix):
    return 20.0 * len(mix) + (7 if 3 in mix else 0)


def cost(assignment):
    return fixed(tuple(sorted(set(assignment)))) + ELEMENTS * sum(assignment) / 8


def total(loss, assignment):
    return sum(loss[channel, WIDTHS.index(bits)] for channel, bits in enumerate(assignment))


def offered(loss, most=10**6):
    channels = len(loss)
    singles = [(bits,) * channels for bits in WIDTHS]
    return [*singles, *channel_mixes(loss, WIDTHS, ELEMENTS, fixed, most)]


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_two_widths_are_optimal_for_every_number_of_channels(seed, rough):
    """No assignment of two widths beats what is offered, at any number of bytes."""
    loss = losses(seed, 7, rough=rough)
    found = [(cost(mix), total(loss, mix)) for mix in offered(loss)]
    for pair in itertools.combinations(WIDTHS, 2):
        for assignment in itertools.product(pair, repeat=7):
            size, loss_here = cost(assignment), total(loss, assignment)
            assert any(s <= size + 1e-9 and found_loss <= loss_here + 1e-12 for s, found_loss in found)


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_up_to_three_widths_are_optimal_at_every_price_of_a_byte(seed, rough):
    loss = losses(seed, 6, rough=rough)
    found = np.array([(cost(mix), total(loss, mix)) for mix in offered(loss)])
    every = [a for a in itertools.product(WIDTHS, repeat=6) if len(set(a)) <= 3]
    all_of = np.array([(cost(a), total(loss, a)) for a in every])
    for price in np.geomspace(1e-8, 1, 60):
        least = (all_of[:, 1] + price * all_of[:, 0]).min()
        assert (found[:, 1] + price * found[:, 0]).min() <= least * (1 + 1e-9)


def test_none_is_beaten_by_another():
    loss = losses(1, 30, rough=True)
    mixes = channel_mixes(loss, WIDTHS, ELEMENTS, fixed, 10**6)
    assert all(2 <= len(set(mix)) <= 3 and len(mix) == 30 for mix in mixes)
    found = [(cost(mix), total(loss, mix)) for mix in offered(loss)[len(WIDTHS) :]]
    assert len(found) > 30
    rising = sorted(found)
    assert [loss for _, loss in rising] == sorted((loss for _, loss in found), reverse=True)


def test_too_many_are_thinned_evenly():
    loss = losses(2, 200)
    every = channel_mixes(loss, WIDTHS, ELEMENTS, fixed, 10**6)
    few = channel_mixes(loss, WIDTHS, ELEMENTS, fixed, 20)
    assert set(few) < set(every)
    assert 15 <= len(few) <= 20
    sizes = sorted(map(cost, few))
    whole = sorted(map(cost, every))
    assert (sizes[0], sizes[-1]) == (whole[0], whole[-1])
    assert np.diff(sizes).max() < 3 * (whole[-1] - whole[0]) / 20


def test_mixes_that_do_not_pay_are_not_offered():
    loss = losses(3, 12)
    assert channel_mixes(loss, WIDTHS, ELEMENTS, lambda mix: 0.0 if len(mix) == 1 else 1e6, 50) == []
    assert channel_mixes(loss[:1], WIDTHS, ELEMENTS, fixed, 50) == []
    assert channel_mixes(loss[:, :1], WIDTHS[:1], ELEMENTS, fixed, 50) == []
    # Channels all alike, or of no loss at all: nothing to gain.
    assert channel_mixes(np.zeros((12, 4)), WIDTHS, ELEMENTS, fixed, 50) == []


def test_tensors_of_many_options_against_enumeration():
    """More than 16 options a site take more bits of the search's packed choices."""
    rng = np.random.default_rng(4)
    for _ in range(4):
        size = rng.integers(0, 1000, (3, 25)).tolist()
        loss = rng.random((3, 25)).tolist()
        problem = Problem(loss, size)
        every = [problem.allocation(choice) for choice in itertools.product(range(25), repeat=3)]
        for budget in (200, 700, 1500):
            allowed = [member for member in every if member.size <= budget]
            if allowed:
                best = min(allowed, key=lambda member: (member.loss, member.size, member.choice))
                assert solve(problem, budget) == best


def test_twenty_thousand_channels_are_searched_in_seconds():
    """Each channel a site of its own, without what a width costs in a tensor: a bound for what mixes can reach."""
    rng = np.random.default_rng(5)
    widths = np.arange(2, 9)
    elements = rng.integers(1, 500, 20_000) * 9
    loss = 10.0 ** rng.uniform(-6, 0, (20_000, 1)) * 4.0**-widths
    problem = Problem(loss.tolist(), (-(-elements[:, None] * widths // 8)).tolist())
    start = time.perf_counter()
    found = frontier(problem, points=10)
    assert time.perf_counter() - start < 30
    assert len(found) >= 10
