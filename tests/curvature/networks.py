"""Small float64 networks whose second derivatives are known exactly, and what is compared with them."""

import itertools
import math

import torch
from torch.func import hessian, jacrev

from amq_onnx.curvature import gauss_newton, hutchinson
from amq_onnx.curvature.losses import SigmoidLoss, SoftmaxLoss, SquaredLoss

DOUBLE = torch.float64


def draw(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE) * scale


class Perceptron:
    """scores = tanh(x w1') w2', [samples, classes]. `positions`: x has positions, and so have the scores."""

    def __init__(self, classes=3, hidden=3, inputs=2, samples=2, positions=None):
        shape = (samples, inputs) if positions is None else (samples, positions, inputs)
        self.weights = {"w1": draw(hidden, inputs, seed=1), "w2": draw(classes, hidden, seed=2)}
        self.x = draw(*shape, seed=3)

    def hidden(self, weights):
        return torch.tanh(self.x @ weights["w1"].T)

    def scores(self, weights, hidden=None):
        return (self.hidden(weights) if hidden is None else hidden) @ weights["w2"].T


class ConvNet:
    """Two 3x3 convolutions with a softplus between them, global mean, [samples, classes]."""

    def __init__(self, classes=3, samples=2):
        self.weights = {
            "w1": draw(2, 1, 3, 3, seed=4, scale=0.7),
            "w2": draw(classes, 2, 3, 3, seed=5, scale=0.7),
        }
        self.x = draw(samples, 1, 4, 4, seed=6)

    def hidden(self, weights):
        return torch.nn.functional.softplus(torch.nn.functional.conv2d(self.x, weights["w1"], padding=1))

    def scores(self, weights, hidden=None):
        hidden = self.hidden(weights) if hidden is None else hidden
        return torch.nn.functional.conv2d(hidden, weights["w2"], padding=1).mean((2, 3))


def target_of(loss, scores, seed=9):
    generator = torch.Generator().manual_seed(seed)
    if isinstance(loss, SoftmaxLoss):
        shape = list(scores.shape)
        classes = shape.pop(loss.axis)
        return torch.randint(0, classes, shape, generator=generator)
    if isinstance(loss, SigmoidLoss):
        return torch.randint(0, 2, scores.shape, generator=generator)
    return draw(*scores.shape, seed=seed)


def score_hessian(loss, scores):
    """The exact Hessian of the summed loss in the scores, [n, n] for n scores of all samples."""
    target = target_of(loss, scores)
    flat = hessian(lambda z: loss.value(z.reshape(scores.shape), target).sum())(scores.reshape(-1))
    return flat.detach()


def gauss_newton_block(function, point, loss):
    """J' H J of the summed loss, exactly, [m, m] for m elements of `point`."""
    scores = function(point)
    jacobian = jacrev(lambda p: function(p.reshape(point.shape)).reshape(-1))(point.reshape(-1))
    return jacobian.T @ score_hessian(loss, scores) @ jacobian


def hessian_block(function, point, loss, target):
    return hessian(lambda p: loss.value(function(p.reshape(point.shape)), target).sum())(point.reshape(-1))


def enumerate_signs(monkeypatch, module, elements):
    """Calls of rademacher_like in `module` walk through all sign vectors; returns how many there are.

    elements: how many signs one probe draws, over all of its calls.
    """
    signs = itertools.product((1.0, -1.0), repeat=elements)
    held = iter(())

    def next_signs(tensor, generator):
        nonlocal held
        drawn = []
        while len(drawn) < tensor.numel():
            value = next(held, None)
            if value is None:
                held = iter(next(signs))
                continue
            drawn.append(value)
        return torch.tensor(drawn, dtype=tensor.dtype).reshape(tensor.shape)

    monkeypatch.setattr(module, "rademacher_like", next_signs)
    return 2**elements


def mean_and_error(draws):
    draws = torch.stack(draws)
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


LOSSES = {"softmax": SoftmaxLoss(), "sigmoid": SigmoidLoss(), "squared": SquaredLoss(0.3)}
__all__ = ["LOSSES", "ConvNet", "Perceptron", "gauss_newton", "hutchinson"]
