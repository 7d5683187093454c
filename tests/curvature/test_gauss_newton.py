"""Probes of the Gauss-Newton matrix against the matrix itself."""

import pytest
import torch

from amq_onnx.curvature import losses as losses_module
from amq_onnx.curvature.gauss_newton import probe_gradients
from amq_onnx.curvature.losses import SoftmaxLoss, SquaredLoss

from .networks import LOSSES, ConvNet, EveryDraw, Perceptron, gauss_newton_block, mean_and_error

NETWORKS = {"perceptron": Perceptron, "convolutions": ConvNet}
PROBES = 3000


def exact_traces(network, loss):
    """The trace of each weight's block, and of each sample's own block in the hidden tensor."""
    weights = {
        name: gauss_newton_block(lambda p, n=name: network.scores({**network.weights, n: p}), value, loss).trace()
        for name, value in network.weights.items()
    }
    hidden = network.hidden(network.weights)
    block = gauss_newton_block(lambda p: network.scores(network.weights, p), hidden, loss)
    return weights, block.diagonal().reshape(len(hidden), -1).sum(1)


def probe(network, loss, probes, seed=0):
    """Draws of the same: by weight [probes], and [probes, samples]."""
    weights = {name: value.clone().requires_grad_() for name, value in network.weights.items()}
    hidden = network.hidden(weights)
    scores = network.scores(weights, hidden)
    generator = torch.Generator().manual_seed(seed)
    draws = [probe_gradients([scores], [loss], [*weights.values(), hidden], generator) for _ in range(probes)]
    of_weights = {name: [d[index].square().sum() for d in draws] for index, name in enumerate(weights)}
    return of_weights, [d[-1].square().reshape(len(hidden), -1).sum(1) for d in draws]


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("kind", NETWORKS.values(), ids=NETWORKS)
def test_mean_over_probes_agrees_with_the_exact_traces(kind, loss):
    network = kind()
    exact, exact_samples = exact_traces(network, loss)
    drawn, drawn_samples = probe(network, loss, PROBES)
    for name, draws in drawn.items():
        mean, error = mean_and_error(draws)
        assert abs(mean - exact[name]) <= 4 * error
        assert error < 0.1 * exact[name]  # so that the line above can fail
    mean, error = mean_and_error(drawn_samples)
    assert ((mean - exact_samples).abs() <= 4 * error + 1e-12).all()
    assert (error < 0.1 * exact_samples).all()


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("positions", [None, 2])
def test_all_that_can_be_drawn_gives_the_exact_traces(loss, positions, monkeypatch):
    network = Perceptron(classes=3 if positions is None else 2, samples=2, positions=positions)
    exact, exact_samples = exact_traces(network, loss)

    def draw():
        of_weights, of_samples = probe(network, loss, 1)
        return torch.cat([torch.stack([found[0] for found in of_weights.values()]), of_samples[0]])

    mean = EveryDraw(monkeypatch, losses_module).mean(draw)
    expected = torch.cat([torch.stack(list(exact.values())), exact_samples])
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=0)


def test_several_outputs_add_their_blocks(monkeypatch):
    network = Perceptron(classes=2, samples=2)
    losses = [SoftmaxLoss(), SquaredLoss(0.5)]
    weight = network.weights["w1"].clone().requires_grad_()
    scores = network.scores({**network.weights, "w1": weight})

    def first(values):
        return network.scores({**network.weights, "w1": values})

    functions = [first, lambda values: first(values).sin()]
    exact = sum(
        gauss_newton_block(function, network.weights["w1"], loss).trace()
        for function, loss in zip(functions, losses, strict=True)
    )
    mean = EveryDraw(monkeypatch, losses_module).mean(
        lambda: probe_gradients([scores, scores.sin()], losses, [weight], torch.Generator())[0].square().sum()
    )
    torch.testing.assert_close(mean, exact.detach(), rtol=1e-10, atol=0)


def test_two_classes_have_no_variance():
    network = Perceptron(classes=2, samples=1)
    exact, _ = exact_traces(network, SoftmaxLoss())
    drawn, _ = probe(network, SoftmaxLoss(), 20)
    for name, draws in drawn.items():
        torch.testing.assert_close(torch.stack(draws), exact[name].expand(20), rtol=1e-10, atol=0)


def test_same_seed_same_probe_other_seed_another():
    first, second, other = (probe(Perceptron(), SoftmaxLoss(), 3, seed)[0]["w1"] for seed in (5, 5, 6))
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert not torch.equal(torch.stack(first), torch.stack(other))
    assert first[0] != first[1]


def test_a_site_that_no_score_depends_on_has_zero_curvature():
    weight = torch.ones(3, requires_grad=True)
    scores = torch.ones(2, 2, requires_grad=True) * 2
    (gradient,) = probe_gradients([scores], [SquaredLoss()], [weight], torch.Generator())
    assert torch.equal(gradient, torch.zeros(3))
