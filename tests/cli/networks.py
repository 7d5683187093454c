"""Small models and data for the tests of the command line, the runtime and the pipeline."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10
# Little curvature, so that a measurement takes a fraction of a second.
FAST = ("--curvature-samples", "8", "--relative-error", "0.5", "--max-probes", "2")


def noise(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def scaled(seed, *shape):
    """Weights that keep the variance of what they read."""
    return noise(seed, *shape) / np.float32(np.sqrt(np.prod(shape[1:])))


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs.split(), outputs.split(), name=f"{kind}_{outputs.split()[0]}", **attributes)


def build(nodes, inputs, outputs, constants=None, opset=18, ir_version=8, **graph_fields):
    """inputs, outputs: {name: shape} of floats, or {name: (element type, shape)}."""

    def infos(values):
        return [
            helper.make_tensor_value_info(name, *(value if isinstance(value, tuple) else (TensorProto.FLOAT, value)))
            for name, value in values.items()
        ]

    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "small", infos(inputs), infos(outputs), tensors, **graph_fields)
    imports = [helper.make_opsetid("", opset)]
    if any(item.domain for item in nodes):
        imports += [helper.make_opsetid(domain, 1) for domain in sorted({item.domain for item in nodes} - {""})]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version)


def conv_nodes():
    return [
        node("Conv", "image w1 b1", "c1", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 w2 b2", "c2", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "c2", "r2"),
        node("GlobalAveragePool", "r2", "pooled"),
        node("Flatten", "pooled", "flat"),
        node("Gemm", "flat w3 b3", "scores", transB=1),
    ]


def conv_constants():
    return {
        "w1": scaled(1, 16, 3, 3, 3),
        "b1": noise(2, 16) / 8,
        "w2": scaled(3, 32, 16, 3, 3),
        "b2": noise(4, 32) / 8,
        "w3": 4 * scaled(5, CLASSES, 32),
        "b3": noise(6, CLASSES) / 8,
    }


def conv_net(batch="n", opset=18):
    """Two convolutions and a classifier: image [n, 3, 8, 8] -> scores [n, 10]; 21 KB."""
    return build(conv_nodes(), {"image": [batch, 3, 8, 8]}, {"scores": [batch, CLASSES]}, conv_constants(), opset=opset)


def two_inputs():
    """image [n, 3, 8, 8] and side [n, 6] -> scores [n, 10] and the class [n], an integer."""
    nodes = [
        *conv_nodes()[:-1],
        node("Concat", "flat side", "joined", axis=1),
        node("Gemm", "joined w3 b3", "scores", transB=1),
        node("ArgMax", "scores", "class", axis=1, keepdims=0),
    ]
    constants = conv_constants() | {"w3": 4 * scaled(7, CLASSES, 38)}
    outputs = {"scores": ["n", CLASSES], "class": (TensorProto.INT64, ["n"])}
    return build(nodes, {"image": ["n", 3, 8, 8], "side": ["n", 6]}, outputs, constants)


def detector():
    """image [n, 3, 8, 8] -> scores [n, 16, 3], logits, and boxes [n, 16, 4] of places."""
    nodes = [
        node("Conv", "image w1 b1", "features", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Relu", "features", "relu"),
        *(
            made
            for name in ("scores", "boxes")
            for made in (
                node("Conv", f"relu {name}_w", f"{name}_map"),
                node("Reshape", f"{name}_map {name}_shape", f"{name}_places"),
                node("Transpose", f"{name}_places", name, perm=[0, 2, 1]),
            )
        ),
    ]
    constants = {"w1": scaled(1, 96, 3, 3, 3), "b1": 0.1 * noise(2, 96)}
    for number, (name, channels) in enumerate((("scores", 3), ("boxes", 4))):
        constants |= {f"{name}_w": 4 * scaled(3 + number, channels, 96, 1, 1)}
        constants |= {f"{name}_shape": np.array([0, channels, 16], np.int64)}
    outputs = {"scores": ["n", 16, 3], "boxes": ["n", 16, 4]}
    return build(nodes, {"image": ["n", 3, 8, 8]}, outputs, constants)


def images(count=32, seed=11):
    return noise(seed, count, 3, 8, 8)


def run_float(model, feeds):
    """Outputs of `model`, by name, from onnx's own reference: no part of what is tested."""
    from onnx.reference import ReferenceEvaluator

    names = [output.name for output in model.graph.output]
    return dict(zip(names, ReferenceEvaluator(model).run(None, feeds), strict=True))


def save(model, path):
    onnx.save_model(model, path)
    return path


def listing(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
