"""What the weights of each layer are multiplied with on average, from a pass over data.

Rounding a weight W to Q shifts the mean of output channel o by sum (Q - W)[o, ...] * E[x], where E[x] is the mean,
over samples and positions, of the input that each weight of a channel meets. Known, it is taken off the bias (bias
correction: Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction", section 4.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amq_onnx.executor.interpreter import Executor
from amq_onnx.layout import mean_of_samples
from amq_onnx.model.layers import Layer


class ExpectedInputs:
    """Running means by layer output, in the shape that `quantizer.bias_shift` takes."""

    def __init__(self, executor: Executor, layers: Sequence[Layer]) -> None:
        self.executor = executor
        self.layers = layers
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._samples = 0

    def names(self) -> list[str]:
        """Tensors that `update` must be given."""
        return [layer.data for layer in self.layers]

    def update(self, found: dict[str, Tensor], samples: int) -> None:
        """Add a batch: the layers' input tensors by name."""
        for layer in self.layers:
            data = found[layer.data].float()
            mean = data.mean(1, keepdim=True) if layer.transposed else mean_of_samples(data)
            expected = self._expected(layer, mean).double().cpu().numpy() * samples
            held = self._sums.get(layer.output)
            self._sums[layer.output] = expected if held is None else held + expected
        self._samples += samples

    def result(self) -> dict[str, NDArray[np.float32]]:
        """The means over all samples."""
        return {name: (total / self._samples).astype(np.float32) for name, total in self._sums.items()}

    def _expected(self, layer: Layer, mean: Tensor) -> Tensor:
        """The derivative of a channel's mean output in its weights, which is what they are multiplied with.

        A layer is linear in its weight, so this is exact for every padding, stride and dilation, at the cost of one
        sample forward and backward.
        """
        with torch.inference_mode(False), torch.enable_grad():
            weight = self.executor.initializers[layer.weight].detach().clone().requires_grad_()
            output = self.executor.run({layer.data: mean.clone(), layer.weight: weight}, [layer.output])[layer.output]
            channels = weight.shape[layer.axis] * (layer.groups if layer.operator == "ConvTranspose" else 1)
            (gradient,) = torch.autograd.grad(output.sum() * (channels / output.numel()), weight)
        # All channels of a group see the same input.
        step = weight.shape[layer.axis] // (layer.groups if layer.operator == "Conv" else 1)
        return gradient.movedim(layer.axis, 0)[::step]


class Centring:
    """Takes the mean of each layer's input out of the gradient in its weight, where that can be known.

    biases: leaves, by name, whose gradients it needs.
    """

    def __init__(
        self,
        executor: Executor,
        weights: Mapping[str, int | None],
        layers: Sequence[Layer],
        expected: Mapping[str, NDArray[np.float32]],
    ) -> None:
        self.layers = {
            layer.weight: layer
            for layer in layers
            if layer.bias is not None
            and layer.weight in weights
            and layer.output in expected
            and (layer.operator != "ConvTranspose" or layer.groups == 1)
        }
        self.expected = {
            name: torch.from_numpy(expected[layer.output]).to(executor.device) for name, layer in self.layers.items()
        }
        self.biases = {
            layer.bias: executor.initializers[layer.bias].detach().requires_grad_()
            for layer in self.layers.values()
            if layer.bias is not None
        }

    def centre(self, weights: Sequence[str], gradients: list[Tensor]) -> None:
        """Centre the gradients in `weights`, which come first, by those in `biases`, which come last; in place."""
        biases = dict(zip(self.biases, gradients[len(gradients) - len(self.biases) :], strict=True))
        for index, name in enumerate(weights):
            layer = self.layers.get(name)
            if layer is not None and layer.bias is not None:
                gradients[index] = centred(gradients[index], biases[layer.bias], self.expected[name], layer.axis)


def centred(gradient: Tensor, bias_gradient: Tensor, expected: Tensor, axis: int) -> Tensor:
    """The gradient in a layer's weight W as if its input had no mean, given those in W and in the layer's bias.

    The layer's output is W (x - E x) + (b + W E x). With the second term held, which is what correcting the bias does,
    the gradient in W is sum g (x - E x)' = (sum g x') - (sum g) (E x)', over samples and positions, g the gradient in
    the output. expected: E x as `ExpectedInputs` has it. Returns the shape of `gradient`.
    """
    channels = gradient.shape[axis]
    mean = expected.repeat_interleave(channels // len(expected), 0)
    shift = mean * bias_gradient.reshape(channels, *[1] * (mean.ndim - 1))
    return gradient - shift.movedim(0, axis)
