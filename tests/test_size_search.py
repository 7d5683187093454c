"""The search for the smallest file within a drop, on made-up frontiers."""

from dataclasses import dataclass

import numpy as np
import pytest

from amq_onnx.size_search import MOST_EVALUATIONS, smallest_within

LEAST, LARGEST = 1000, 4000


@dataclass(frozen=True)
class File:
    bytes: int


def search(drop, most, sizes=range(LEAST, LARGEST + 1)):
    """drop: of a file by its bytes. Files exist of `sizes`; also returns how often it was evaluated."""
    sizes, seen = np.array(sizes), []

    def build(budget):
        assert budget >= LEAST
        return File(int(sizes[sizes <= budget].max()))

    def drop_of(file):
        seen.append(file.bytes)
        return drop(file.bytes)

    found = smallest_within(build, drop_of, most, LEAST, 10 * LARGEST)
    assert len(seen) == len(set(seen)) == len(found.trials) <= MOST_EVALUATIONS
    assert [trial.bytes for trial in found.trials] == seen
    if found.smallest is not None:
        assert drop(found.smallest.bytes) <= most
        passed = [trial.bytes for trial in found.trials if trial.drop <= most]
        assert found.smallest.bytes == min(passed)
    return found


@pytest.mark.parametrize("edge", [1000, 1001, 1234, 2000, 3500, 3990, 4000])
def test_a_monotone_drop_is_found_to_a_hundredth(edge):
    found = search(lambda size: 0.0 if size >= edge else 1.0, 0.5)
    assert edge <= found.smallest.bytes <= 1.011 * edge


def test_few_sizes_are_evaluated_once_each():
    found = search(lambda size: 3000 / size - 1, 0.6, sizes=[1000, 1800, 1900, 3000, 4000])
    assert found.smallest.bytes == 1900


def test_one_size_only():
    assert search(lambda size: 0.1, 0.2, sizes=[1000]).smallest.bytes == 1000
    assert search(lambda size: 0.3, 0.2, sizes=[1000]).smallest is None


def test_the_neighbours_below_a_bump_are_found():
    """A file that does badly between two that do well doesn't end the search."""
    rng = np.random.default_rng(3)
    for _ in range(50):
        noise = dict(zip(range(LEAST, LARGEST + 1), 0.004 * rng.standard_normal(LARGEST + 1 - LEAST), strict=True))
        found = search(lambda size, noise=noise: 0.02 * (LARGEST - size) / 2000 + noise[size], 0.01)
        assert found.smallest is not None
        assert found.smallest.bytes < 3800
    found = search(lambda size: 1.0 if 2000 <= size < 2020 or size < 1960 else 0.0, 0.5)
    assert found.smallest.bytes < 2000


def test_nothing_within_the_bound():
    found = search(lambda size: 100 / size, 0.01)
    assert found.smallest is None
    assert found.best.bytes == LARGEST
    assert len(found.trials) == 4


def test_a_smaller_file_may_do_where_the_largest_fails():
    found = search(lambda size: 1.0 if size > 3900 or size < 3000 else 0.0, 0.5)
    assert 3000 <= found.smallest.bytes <= 3031


def test_scores_that_are_no_numbers_fail():
    found = search(lambda size: float("nan"), 0.5)
    assert found.smallest is None
    found = search(lambda size: 0.0 if size == LARGEST else float("nan"), 0.5)
    assert found.smallest.bytes == LARGEST
