"""Quantized graphs to be tuned, with the float graphs that they come from and their data."""

from dataclasses import dataclass

import numpy as np
import onnx
from small_graphs import model, node

from amq_onnx.curvature.losses import Loss, SoftmaxLoss, SquaredLoss
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head
from amq_onnx.model.inputs import input_specs
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import Prepared, prepare, trainable

SAMPLES = 64


@dataclass
class Case:
    prepared: Prepared
    quantized: onnx.ModelProto
    heads: list[Head]
    losses: list[Loss]
    data: Dataset


def _data(proto, arrays):
    return Dataset(lambda: [arrays], input_specs(proto), "the test")


def encodings_of(prepared, weight_bits, activation_bits=None):
    found = {
        site.name: weight_encodings(prepared.weight(site.name), site.axis, [weight_bits]).encodings[weight_bits]
        for site in prepared.sites.weights
    }
    if activation_bits is not None:
        found |= {site.name: activation_encoding(-4, 4, activation_bits) for site in prepared.sites.activations}
    return found


def quantize(proto, output, weight_bits, activation_bits=None, samples=SAMPLES, loss="squared", labels=None):
    """Weights of `proto` at `weight_bits`; activations, if any, in [-4, 4]."""
    prepared = prepare(proto)
    encodings = encodings_of(prepared, weight_bits, activation_bits)
    generator = np.random.default_rng(0)
    arrays = {
        # Correlated, as inputs are: of white ones, nearest codes are almost the best.
        spec.name: (
            generator.standard_normal((samples, *spec.shape[1:])) + generator.standard_normal((samples, *ones))
        ).astype(np.float32)
        for spec in input_specs(proto)
        for ones in [[1] * (len(spec.shape) - 1)]
    }
    if labels is not None:
        arrays["labels"] = labels
    head = Head(output, loss, -1, output, "the test")
    losses = [SquaredLoss() if loss == "squared" else SoftmaxLoss()]
    return Case(prepared, trainable(prepared, encodings), [head], losses, _data(proto, arrays))


def linear(inputs=6, outputs=1, seed=3):
    weight = np.random.default_rng(seed).standard_normal((inputs, outputs)).astype(np.float32)
    return model([node("MatMul", "x w", "y")], {"x": ["n", inputs]}, {"y": ["n", outputs]}, {"w": weight})


def residual(classes=5, seed=4, activation="Relu", attributes=None):
    """A stem, two residual parts and a classifier."""
    generator = np.random.default_rng(seed)

    def weight(*shape):
        return (generator.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    nodes = [node("Conv", "image w0 b0", "c0", pads=[1, 1, 1, 1]), node("Relu", "c0", "r0")]
    constants = {"w0": weight(8, 3, 3, 3), "b0": np.zeros(8, np.float32)}
    for part in (1, 2):
        constants |= {f"w{part}a": weight(8, 8, 3, 3), f"w{part}b": weight(8, 8, 3, 3)}
        nodes += [
            node("Conv", f"r{part - 1} w{part}a", f"a{part}", pads=[1, 1, 1, 1]),
            node("Relu", f"a{part}", f"h{part}"),
            node("Conv", f"h{part} w{part}b", f"b{part}", pads=[1, 1, 1, 1]),
            node("Add", f"b{part} r{part - 1}", f"s{part}"),
            node("Relu", f"s{part}", f"r{part}"),
        ]
    constants |= {"w": 3 * weight(classes, 8), "b": np.zeros(classes, np.float32)}
    nodes += [
        node("GlobalAveragePool", "r2", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w b", "scores", transB=1),
    ]
    return model(nodes, {"image": ["n", 3, 6, 6]}, {"scores": ["n", classes]}, constants)
