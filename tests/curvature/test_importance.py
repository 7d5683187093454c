"""Samples chosen by importance estimate means without bias."""

import pytest
import torch

from amq_onnx.curvature.importance import choose_samples

IMPORTANCE = torch.tensor([0.0, 1e-9, 0.1, 0.1, 5.0, 0.7, 0.0, 2.0, 0.3, 0.02])
VALUES = torch.tensor([0.3, 1.0, 0.2, 0.1, 9.0, 1.0, 0.5, 4.0, 0.5, 0.2], dtype=torch.float64)


def estimates(count, draws=4000, importance=IMPORTANCE):
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(draws):
        chosen, weights = choose_samples(importance, count, generator)
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(chosen) == len(weights) <= count
        found.append((VALUES[chosen] * weights).sum())
    return torch.stack(found)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_means_are_unbiased(count):
    found = estimates(count)
    error = float(found.std()) / len(found) ** 0.5
    assert abs(float(found.mean() - VALUES.mean())) <= 4 * error
    assert error < 0.05 * float(VALUES.mean())


def test_what_follows_the_importance_varies_less_than_in_a_plain_choice():
    assert float(estimates(3).std()) < 0.5 * float(estimates(3, importance=torch.ones(10)).std())


def test_no_weight_is_more_than_ten_times_that_of_a_plain_choice():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        _, weights = choose_samples(IMPORTANCE, 1, generator)
        assert float(weights.max()) <= 10 + 1e-9


@pytest.mark.parametrize("count", [10, 99])
def test_all_of_them_where_as_many_are_asked_for(count):
    chosen, weights = choose_samples(IMPORTANCE, count, torch.Generator())
    assert chosen.tolist() == list(range(10))
    torch.testing.assert_close(weights, torch.full((10,), 0.1, dtype=torch.float64))


def test_without_any_importance_all_are_alike():
    chosen, weights = choose_samples(torch.zeros(10), 5, torch.Generator().manual_seed(2))
    assert len(chosen) == 5
    torch.testing.assert_close(weights, torch.full((5,), 0.2, dtype=torch.float64))
