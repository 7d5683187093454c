"""Draws of a known perturbation's quadratic form against the form itself."""

import pytest
import torch

from amq_onnx.curvature import losses as losses_module
from amq_onnx.curvature.gauss_newton import probe_gradients
from amq_onnx.curvature.quadratic_form import quadratic_draws, sample_slopes
from amq_onnx.curvature.sample_axis import SampleAxis

from .networks import LOSSES, EveryDraw, Perceptron, draw, gauss_newton_block

FRONT = SampleAxis(0)


def drawn_with(gradients, perturbations, axes, samples):
    return quadratic_draws(sample_slopes(gradients, perturbations, axes, samples))


def setting(loss, samples=2):
    """A network whose hidden values and output are perturbed, and 1/2 d'J'HJd of each, exactly."""
    network = Perceptron(samples=samples)
    hidden = network.hidden(network.weights).detach()
    change = draw(*hidden.shape, seed=11, scale=0.3)
    block = gauss_newton_block(lambda p: network.scores(network.weights, p), hidden, loss)
    exact = 0.5 * change.reshape(-1) @ block @ change.reshape(-1)
    return network, hidden, change, exact


def gradients(network, hidden, loss, generator=None, weights=None):
    point = hidden.clone().requires_grad_()
    scores = network.scores(network.weights, point)
    return probe_gradients([scores], [loss], [point], generator or torch.Generator(), weights)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("axis", [FRONT, None], ids=["by sample", "whole batch"])
def test_all_that_can_be_drawn_gives_the_exact_form(loss, axis, monkeypatch):
    network, hidden, change, exact = setting(loss)
    mean = EveryDraw(monkeypatch, losses_module).mean(
        lambda: drawn_with(gradients(network, hidden, loss), [change], [axis], len(hidden))
    )
    assert mean.shape == ((len(hidden),) if axis else (1,))
    torch.testing.assert_close(mean.sum(), exact, rtol=1e-10, atol=0)


def test_each_samples_draw_is_its_own_form(monkeypatch):
    loss = LOSSES["softmax"]
    network, hidden, change, _ = setting(loss)
    mean = EveryDraw(monkeypatch, losses_module).mean(
        lambda: drawn_with(gradients(network, hidden, loss), [change], [FRONT], len(hidden))
    )
    for sample in range(len(hidden)):
        block = gauss_newton_block(lambda p: network.scores(network.weights, p), hidden[[sample]], loss)
        exact = 0.5 * change[sample] @ block @ change[sample]
        torch.testing.assert_close(mean[sample], exact, rtol=1e-10, atol=0)


def test_several_tensors_are_perturbed_together(monkeypatch):
    """A weight that two layers read: the cross terms count."""
    loss = LOSSES["squared"]
    network, hidden, change, exact = setting(loss)
    parts = [change * 0.25, change * 0.75]

    def drawn():
        (found,) = gradients(network, hidden, loss)
        return drawn_with([found, found], parts, [FRONT, FRONT], len(hidden))

    mean = EveryDraw(monkeypatch, losses_module).mean(drawn)
    torch.testing.assert_close(mean.sum(), exact, rtol=1e-10, atol=0)


@pytest.mark.parametrize("axis", [FRONT, None], ids=["by sample", "whole batch"])
def test_weights_of_samples(axis, monkeypatch):
    loss, weights = LOSSES["softmax"], torch.tensor([0.2, 3.0])
    network, hidden, change, _ = setting(loss)
    plain = EveryDraw(monkeypatch, losses_module).mean(
        lambda: drawn_with(gradients(network, hidden, loss), [change], [FRONT], 2)
    )
    mean = EveryDraw(monkeypatch, losses_module).mean(
        lambda: drawn_with(gradients(network, hidden, loss, weights=weights), [change], [axis], 2)
    )
    torch.testing.assert_close(mean.sum(), (plain * weights).sum(), rtol=1e-6, atol=0)


def test_a_direction_that_the_loss_does_not_feel_costs_nothing():
    """All scores rise alike, which softmax doesn't see; the mean trace times the squared norm would."""
    loss = LOSSES["softmax"]
    network = Perceptron(classes=3)
    scores = network.scores(network.weights).detach().requires_grad_()
    (gradient,) = probe_gradients([scores], [loss], [scores], torch.Generator().manual_seed(0))
    parts = drawn_with([gradient], [torch.full_like(scores, 5.0)], [FRONT], len(scores))
    assert float(gradient.square().sum()) > 0.01
    assert float(parts.abs().max()) < 1e-25


def test_how_tensors_lie_in_memory_changes_no_draw():
    gradient, change = draw(3, 4, 5, 2, seed=1), draw(3, 4, 5, 2, seed=2)
    expected = (gradient * change).flatten(1).sum(1).square() / 2
    pixels = [each.movedim(1, -1).contiguous().movedim(-1, 1) for each in (gradient, change)]
    for one in (gradient, pixels[0]):
        for other in (change, pixels[1]):
            torch.testing.assert_close(drawn_with([one], [other], [FRONT], 3), expected)
            whole = drawn_with([one], [other], [None], 3)
            torch.testing.assert_close(whole, (gradient * change).sum().square().reshape(1) / 2)
