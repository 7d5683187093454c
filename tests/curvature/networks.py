"""Small float64 networks whose second derivatives are known exactly, and what is compared with them."""

import math

import torch
from torch.func import hessian, jacrev

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


class EveryDraw:
    """In place of random numbers: walks through all that could be drawn, each with its probability."""

    def __init__(self, monkeypatch, *modules):
        for module in modules:
            monkeypatch.setattr(module, "rademacher_like", self._signs)
            if hasattr(module, "draw_classes"):
                monkeypatch.setattr(module, "draw_classes", self._classes)
        self._path = []

    def mean(self, draw):
        """The expected value of what `draw` returns, exactly; `draw` must draw the same number of things each time."""
        total, self._path, more = 0.0, [], True
        while more:
            self._position, self._probability = 0, 1.0
            value = draw()
            total = total + self._probability * value
            more = self._next_path()
        return total

    def _next_path(self):
        while self._path and self._path[-1][0] == self._path[-1][1] - 1:
            self._path.pop()
        if self._path:
            self._path[-1][0] += 1
        return bool(self._path)

    def _pick(self, chances):
        if self._position == len(self._path):
            self._path.append([0, len(chances)])
        index = self._path[self._position][0]
        self._position += 1
        self._probability *= chances[index]
        return index

    def _signs(self, tensor, generator):
        signs = [1.0 - 2.0 * self._pick([0.5, 0.5]) for _ in range(tensor.numel())]
        return torch.tensor(signs, dtype=tensor.dtype).reshape(tensor.shape)

    def _classes(self, chances, generator):
        return torch.tensor([[self._pick(row)] for row in chances.tolist()])


def mean_and_error(draws):
    draws = torch.stack(draws)
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


LOSSES = {"softmax": SoftmaxLoss(), "sigmoid": SigmoidLoss(), "squared": SquaredLoss(0.3)}
