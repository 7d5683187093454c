"""Quantized graphs of one layer and of a small network, simulated and packed."""

import numpy as np
import onnx
from small_graphs import f, initializers, model, node, session

from amq_onnx.passes.base import run
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.pack import Pack, QuantizeBiases
from amq_onnx.quantizer.activation_ranges import activation_encoding
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import lower, prepare, simulate
from amq_onnx.targets.onnxruntime import OnnxRuntimeTarget

STEM = "q"
# Codes after which the pieces of every width end on whole bytes.
BLOCK = {1: 8, 2: 4, 3: 8, 4: 2, 5: 8, 6: 4, 7: 8, 8: 1}
# By kind: operator, attributes, the weight's output axis, shape of the data, and shapes of weights whose numbers of
# elements have every remainder that matters.
LAYERS = {
    "Conv": ("Conv", {}, 0, (2, 3, 6, 6), [(5, 3, 3, 3), (3, 3, 1, 1), (4, 3, 2, 3)]),
    "Conv, depthwise": ("Conv", {"group": 3}, 0, (2, 3, 6, 6), [(3, 1, 3, 3)]),
    "Gemm": ("Gemm", {}, 1, (4, 7), [(7, 5), (7, 3)]),
    "Gemm, transB": ("Gemm", {"transB": 1}, 0, (4, 7), [(5, 7), (8, 7)]),
    "MatMul": ("MatMul", {}, 1, (4, 7), [(7, 5), (7, 1)]),
}
CASES = [(kind, shape) for kind, layer in LAYERS.items() for shape in layer[4]]


def layer(kind, shape, opset=18):
    """x -> operator(w, b) -> Relu -> r -> Neg -> y, and some data."""
    operator, attributes, axis, data_shape, _ = LAYERS[kind]
    constants = {"w": f(*shape)}
    reads = "x w"
    if operator != "MatMul":
        constants["b"] = f(shape[axis])
        reads += " b"
    nodes = [node(operator, reads, "c", **attributes), node("Relu", "c", "r"), node("Neg", "r", "y")]
    made = model(nodes, {"x": ["n", *data_shape[1:]]}, {"y": None}, constants, opset)
    return made, axis, {"x": f(*data_shape)}


def ranges(proto, names, feeds):
    """Smallest and largest value of float tensors."""
    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.output[:]
    computed = [name for name in names if name not in feeds]
    if not computed:
        return {name: (float(feeds[name].min()), float(feeds[name].max())) for name in names}
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in computed)
    found = dict(zip(computed, session(probe).run(None, feeds), strict=True)) | feeds
    return {name: (float(found[name].min()), float(found[name].max())) for name in names}


def packed_layer(kind, shape, bits, opset=18):
    """Simulated graph, packed graph, recipe of the weight, data."""
    proto, axis, feeds = layer(kind, shape, opset)
    weight = initializers(proto)["w"]
    encodings = {"w": weight_encodings(weight, axis, [bits]).encodings[bits]}
    encodings |= {name: activation_encoding(*ends, 8) for name, ends in ranges(proto, ["x", "r"], feeds).items()}
    simulated = run(proto, [InsertQDQ(encodings, STEM, {"w": "w0", "x": "a0", "r": "a1"})])
    target = OnnxRuntimeTarget(STEM)
    recipe = target.weight("w0", shape, bits)
    return simulated, run(simulated, [Pack({"w": recipe}, target.shared)]), recipe, feeds


def mixed_encoding(weight, axis, widths):
    """The encoding of least squared error of each channel at its width."""
    found = weight_encodings(weight, axis, widths).encodings
    scale = np.array([found[bits].scale[channel] for channel, bits in enumerate(widths)], np.float32)
    return Encoding(max(widths), True, scale, axis=axis, widths=tuple(widths))


def mixed_layer(kind, shape, widths, opset=18):
    """See packed_layer: with a width for each channel."""
    proto, axis, feeds = layer(kind, shape, opset)
    encodings = {"w": mixed_encoding(initializers(proto)["w"], axis, widths)}
    encodings |= {name: activation_encoding(*ends, 8) for name, ends in ranges(proto, ["x", "r"], feeds).items()}
    simulated = run(proto, [InsertQDQ(encodings, STEM, {"w": "w0", "x": "a0", "r": "a1"})])
    target = OnnxRuntimeTarget(STEM)
    recipe = target.mixed_weight("w0", shape, axis, widths)
    return simulated, run(simulated, [Pack({"w": recipe}, target.shared)]), recipe, feeds


def network(opset=18, also=(), outputs=("y",), **more):
    """Conv-Relu-Conv-Add-Relu-Pool-Gemm-Neg: what a residual network is made of; also: nodes, more: their constants."""
    nodes = [
        node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1]),
        node("Add", "c2 r1", "s"),
        node("Relu", "s", "t"),
        node("GlobalAveragePool", "t", "p"),
        node("Flatten", "p", "l"),
        node("Gemm", "l w3 b3", "g", transB=1),
        node("Neg", "g", "y"),
        *also,
    ]
    scale = np.float32(0.3)
    constants = {
        "w1": f(6, 3, 3, 3) * scale, "b1": f(6) * scale,
        "w2": f(6, 6, 3, 3) * scale, "b2": f(6) * scale,
        "w3": f(5, 6), "b3": f(5) * scale, **more,
    }  # fmt: skip
    proto = model(nodes, {"x": ["n", 3, 6, 6]}, dict.fromkeys(outputs), constants, opset)
    return proto, {"x": f(3, 3, 6, 6)}


class QuantizedNetwork:
    """The network above at any pair of widths; `g`, the last layer's output, is quantized too."""

    def __init__(self, opset=18):
        proto, self.feeds = network(opset)
        self.prepared = prepare(proto)
        self.sites = [site.name for site in self.prepared.sites.activations] + ["g"]
        self.ranges = ranges(self.prepared.model, self.sites, self.feeds)

    def build(self, weight_bits, activation_bits):
        """Simulated graph, file's graph, step of the output site."""
        encodings = {name: activation_encoding(*self.ranges[name], activation_bits) for name in self.sites}
        for site in self.prepared.sites.weights:
            found = weight_encodings(self.prepared.weight(site.name), site.axis, [weight_bits])
            encodings[site.name] = found.encodings[weight_bits]
        simulated = simulate(self.prepared, encodings)
        return simulated, lower(self.prepared, simulated, encodings), float(encodings["g"].scale)


def with_int32_bias(packed):
    return run(packed, [QuantizeBiases(STEM)])
