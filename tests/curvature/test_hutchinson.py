"""Probes of Hessian blocks against the exact blocks."""

import pytest
import torch

from amq_onnx.curvature import hutchinson
from amq_onnx.curvature.hutchinson import probe_products

from .networks import (
    DOUBLE,
    LOSSES,
    ConvNet,
    EveryDraw,
    Perceptron,
    hessian_block,
    mean_and_error,
    target_of,
)

NETWORKS = {"perceptron": Perceptron, "convolutions": ConvNet}


def setting(network, loss):
    weights = {name: value.clone().requires_grad_() for name, value in network.weights.items()}
    hidden = network.hidden(weights)
    scores = network.scores(weights, hidden)
    target = target_of(loss, scores)
    return weights, hidden, loss.value(scores, target).sum(), target


def exact_diagonals(network, loss, target):
    blocks = {
        name: hessian_block(lambda p, n=name: network.scores({**network.weights, n: p}), value, loss, target)
        for name, value in network.weights.items()
    }
    hidden = network.hidden(network.weights)
    blocks["hidden"] = hessian_block(lambda p: network.scores(network.weights, p), hidden, loss, target)
    return {name: block.diagonal() for name, block in blocks.items()}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("kind", NETWORKS.values(), ids=NETWORKS)
def test_mean_over_probes_agrees_with_the_exact_blocks(kind, loss):
    network = kind()
    weights, hidden, value, target = setting(network, loss)
    exact = exact_diagonals(network, loss, target)
    generator = torch.Generator().manual_seed(0)
    draws = {name: [] for name in exact}
    for _ in range(1000):
        products = probe_products(value, [*weights.values(), hidden], generator)
        for name, product in zip(draws, products, strict=True):
            draws[name].append(product.detach().reshape(-1))
    for name, drawn in draws.items():
        mean, error = mean_and_error([d.sum() for d in drawn])
        # A linear layer under squared error has the same v'Hv for every v: equal but for rounding.
        assert abs(mean - exact[name].sum()) <= 4 * error + 1e-12
        assert error < 0.3 * exact[name].abs().sum()
    mean, error = mean_and_error([d.reshape(len(hidden), -1).sum(1) for d in draws["hidden"]])
    samples = exact["hidden"].reshape(len(hidden), -1).sum(1)
    assert ((mean - samples).abs() <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("name", ["w1", "w2"])
def test_all_that_can_be_drawn_gives_the_exact_diagonal(name, monkeypatch):
    loss = LOSSES["softmax"]
    network = Perceptron()
    weights, _, value, target = setting(network, loss)
    exact = exact_diagonals(network, loss, target)[name]
    mean = EveryDraw(monkeypatch, hutchinson).mean(
        lambda: next(probe_products(value, [weights[name]], torch.Generator()))
    )
    torch.testing.assert_close(mean.reshape(-1), exact, rtol=1e-11, atol=1e-13)


def test_a_negative_trace_stays_negative():
    x = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=DOUBLE, requires_grad=True)
    loss = x.cos().sum() + x[0] * x[1]
    generator = torch.Generator().manual_seed(1)
    draws = [next(probe_products(loss, [x], generator)).sum() for _ in range(400)]
    mean, error = mean_and_error(draws)
    exact = -x.detach().cos().sum()
    assert exact < 0
    assert mean < 0
    assert abs(mean - exact) <= 4 * error
    assert error > 0  # x0 x1 makes the draws differ


def test_sites_do_not_disturb_each_other():
    network, loss = Perceptron(), LOSSES["squared"]
    weights, _, value, target = setting(network, loss)
    exact = exact_diagonals(network, loss, target)["w2"]
    # The block of w2 is constant in w2; with w1 in the same product its draws would also hold the cross block.
    generator = torch.Generator().manual_seed(2)
    drawn = [list(probe_products(value, list(weights.values()), generator))[1].sum() for _ in range(300)]
    alone = [next(probe_products(value, [weights["w2"]], generator)).sum() for _ in range(300)]
    mean, error = mean_and_error(drawn)
    assert abs(mean - exact.sum()) <= 4 * error
    assert error < 1.5 * mean_and_error(alone)[1]


def test_sites_without_curvature_yield_zeros():
    linear = torch.ones(3, dtype=DOUBLE, requires_grad=True)
    unused = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    squared = torch.ones(2, dtype=DOUBLE, requires_grad=True)
    loss = linear.sum() * 2 + squared.square().sum()
    products = list(probe_products(loss, [linear, unused, squared], torch.Generator().manual_seed(0)))
    assert [p.tolist() for p in products] == [[0.0] * 3, [0.0] * 2, [2.0] * 2]


def test_same_seed_same_products_other_seed_others():
    network, loss = Perceptron(), LOSSES["softmax"]
    weights, _, value, _ = setting(network, loss)
    first, second, other = (
        next(probe_products(value, [weights["w1"]], torch.Generator().manual_seed(seed))) for seed in (5, 5, 6)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
