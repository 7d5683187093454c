"""Every kind of layer: its graph, its data, and the operators that onnxruntime runs."""

import numpy as np
import small_graphs
from onnx import TensorProto, helper
from small_graphs import (
    f,
    infos,
    model,
    node,
)

from amq_onnx.quantizer.activation_ranges import activation_encoding, range_of_hard_sigmoid, range_of_shift
from amq_onnx.quantizer.histogram import StreamingHistogram
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import lower, prepare, simulate

from .networks import ranges

INT64 = TensorProto.INT64


def tokens(*shape):
    return np.random.default_rng(3).integers(0, 9, shape)


def convolution(data, weight, **attributes):
    nodes = [node("Conv", "x w b", "c", **attributes), node("Relu", "c", "r"), node("Exp", "r", "y")]
    proto = model(nodes, {"x": ["n", *data[1:]]}, {"y": None}, {"w": f(*weight), "b": f(weight[0])})
    return proto, {"x": f(*data)}


def between_convolutions(*inner, scale=1, **more):
    """x -> Conv -> c -> inner nodes -> h -> Conv -> Exp; scale: of c, about; more: constants of the inner nodes."""
    nodes = [node("Conv", "x w c0", "c"), *inner, node("Conv", "h v", "d"), node("Exp", "d", "y")]
    constants = {
        "w": f(4, 3, 3, 3) * np.float32(0.3 * scale),
        "c0": f(4) * np.float32(scale),
        "v": f(5, 4, 1, 1),
        **more,
    }
    proto = model(nodes, {"x": ["n", 3, 6, 6]}, {"y": None}, constants)
    return proto, {"x": f(2, 3, 6, 6)}


def matrix_and_bias(*sizes):
    """x [.., 6] -> MatMul -> Add -> MatMul -> Add -> Exp: biases behind and in front, of one and of two dimensions."""
    nodes = [node("MatMul", "x w", "m"), node("Add", "m b", "a"), node("MatMul", "a v", "o"), node("Add", "c o", "s")]
    constants = {"w": f(6, 4), "b": f(4), "v": f(4, 3) * np.float32(0.3), "c": f(1, 3)}
    proto = model([*nodes, node("Exp", "s", "y")], {"x": list(sizes)}, {"y": None}, constants)
    return proto, {"x": f(*(2 if size == "n" else size for size in sizes))}


def stacked_matrices():
    """x -> MatMul with a matrix for each of three -> Exp -> MatMul with one for all -> Exp."""
    nodes = [node("MatMul", "x w", "m"), node("Exp", "m", "e"), node("MatMul", "e v", "o"), node("Exp", "o", "y")]
    constants = {"w": f(3, 6, 4) * np.float32(0.3), "v": f(1, 4, 5) * np.float32(0.1)}
    return model(nodes, {"x": ["n", 3, 2, 6]}, {"y": None}, constants), {"x": f(2, 3, 2, 6)}


def bounded_products(*between):
    """x -> MatMul -> m -> nodes between -> r -> Exp."""
    nodes = [node("MatMul", "x w", "m"), *between, node("Exp", "r", "y")]
    constants = {"w": f(6, 4), "low": np.float32(-0.5), "high": np.float32(0.7)}
    used = {name for each in nodes for name in each.input}
    held = {name: array for name, array in constants.items() if name in used}
    return model(nodes, {"x": ["n", 5, 6]}, {"y": None}, held), {"x": f(2, 5, 6)}


def transformer_parts(norm):
    """x -> norm -> MatMul -> GELU -> MatMul -> Exp, as exporters write norms before opset 17 and GELU before 20."""
    centred = [node("ReduceMean", "x last", "mean"), node("Sub", "x mean", "d")] if norm == "LayerNormalization" else []
    source = "d" if centred else "x"
    nodes = [
        *centred,
        node("Pow", f"{source} two", "squares"),
        node("ReduceMean", "squares last", "variance"),
        node("Add", "variance epsilon", "v"),
        node("Sqrt", "v", "deviation"),
        node("Div", f"{source} deviation", "n"),
        node("Mul", "n gain", "g"),
        *([node("Add", "g shift", "z")] if centred else [node("Identity", "g", "z")]),
        *[node("MatMul", "z w", "m"), node("Add", "m b", "a")],
        *[node("Div", "a root", "e"), node("Erf", "e", "f"), node("Add", "f one", "h")],
        *[node("Mul", "a h", "i"), node("Mul", "i half", "j")],
        *[node("MatMul", "j u", "o"), node("Exp", "o", "y")],
    ]
    numbers = {"two": 2, "epsilon": 1e-5, "root": 2**0.5, "one": 1, "half": 0.5}
    constants = {name: np.float32(number) for name, number in numbers.items()} | {"last": np.int64([-1])}
    constants |= {
        "gain": f(6),
        "shift": f(6),
        "w": f(6, 4) * np.float32(0.3),
        "b": f(4),
        "u": f(4, 3) * np.float32(0.3),
    }
    used = {name for each in nodes for name in each.input}
    held = {name: array for name, array in constants.items() if name in used}
    return model(nodes, {"x": ["n", 5, 6]}, {"y": None}, held), {"x": f(2, 5, 6)}


def transposed_convolution():
    nodes = [node("ConvTranspose", "x w b", "c", strides=[2, 2], group=2), node("Sigmoid", "c", "y")]
    proto = model(nodes, {"x": ["n", 4, 3, 3]}, {"y": None}, {"w": f(4, 3, 2, 2), "b": f(6)})
    return proto, {"x": f(2, 4, 3, 3)}


def recurrent(operator, gates, direction="forward"):
    """Its state comes in and goes out, as where a stream is cut into pieces."""
    ways = 2 if direction == "bidirectional" else 1
    lstm = operator == "LSTM"
    state, after = ("h k", "hn kn") if lstm else ("h", "hn")
    nodes = [
        node(operator, f"x w r b - {state}", f"s {after}", hidden_size=4, direction=direction),
        node("Exp", "s", "y"),
    ]
    constants = {"w": f(ways, gates * 4, 3), "r": f(ways, gates * 4, 4), "b": f(ways, gates * 8)}
    held = {name: [ways, "n", 4] for name in state.split()}
    proto = model(nodes, {"x": [5, "n", 3], **held}, {"y": None, **dict.fromkeys(after.split())}, constants)
    return proto, {"x": f(5, 2, 3), **{name: f(ways, 2, 4) for name in held}}


def embedding():
    nodes = [node("Gather", "table i", "e"), node("MatMul", "e w", "y")]
    proto = model(nodes, {"i": (INT64, ["n", 5])}, {"y": None}, {"table": f(9, 4), "w": f(4, 3)})
    return proto, {"i": tokens(2, 5)}


def tied_embedding():
    nodes = [
        node("Gather", "table i", "e"),
        node("Transpose", "table", "turned", perm=[1, 0]),
        node("MatMul", "e turned", "y"),
    ]
    return model(nodes, {"i": (INT64, ["n", 5])}, {"y": None}, {"table": f(9, 4)}), {"i": tokens(2, 5)}


def attention():
    nodes = [
        *(node("MatMul", f"x w{name}", name) for name in "qkv"),
        node("Attention", "q k v", "a", q_num_heads=2, kv_num_heads=2),
        node("MatMul", "a wo", "y"),
    ]
    constants = {f"w{name}": f(8, 8) * np.float32(0.3) for name in "qkvo"}
    return model(nodes, {"x": ["n", 5, 8]}, {"y": None}, constants, opset=23), {"x": f(2, 5, 8)}


def branches():
    def branch(name, weight):
        held = helper.make_tensor(weight, TensorProto.FLOAT, [4, 4], f(16).tolist())
        nodes = [
            helper.make_node("Constant", [], [weight], value=held),
            helper.make_node("MatMul", ["x", weight], [name]),
        ]
        return helper.make_graph(nodes, name, [], infos({name: None}))

    chosen = helper.make_node("If", ["c"], ["a"], then_branch=branch("t", "wt"), else_branch=branch("e", "we"))
    nodes = [chosen, node("MatMul", "a w", "y")]
    proto = model(nodes, {"x": ["n", 4], "c": (TensorProto.BOOL, [])}, {"y": ["n", 4]}, {"w": f(4, 4)})
    return proto, {"x": f(3, 4), "c": np.array(True)}


def last_convolution():
    nodes = [node("Conv", "x w b", "y")]
    return model(nodes, {"x": ["n", 3, 5, 5]}, {"y": None}, {"w": f(4, 3, 3, 3), "b": f(4)}), {"x": f(2, 3, 5, 5)}


QUANTIZED = ["QuantizeLinear", "QLinearConv", "DequantizeLinear", "Exp"]
# By kind: graph, data, and the operators that onnxruntime runs at its extended level.
KINDS = {
    "Conv, 1-D": (
        lambda: convolution((2, 3, 9), (5, 3, 3)),
        QUANTIZED,
    ),
    "Conv, 3-D": (
        lambda: convolution((2, 3, 4, 4, 4), (5, 3, 2, 2, 2)),
        QUANTIZED,
    ),
    "Conv, grouped": (
        lambda: convolution((2, 4, 6, 6), (6, 2, 3, 3), group=2),
        QUANTIZED,
    ),
    "Conv, depthwise": (
        lambda: convolution((2, 4, 6, 6), (4, 1, 3, 3), group=4),
        QUANTIZED,
    ),
    "Conv, depthwise, two outputs each": (
        lambda: convolution((2, 4, 6, 6), (8, 1, 3, 3), group=4),
        ["Gather", *QUANTIZED],
    ),
    "Conv, the last": (last_convolution, ["Conv"]),
    "SiLU": (
        lambda: between_convolutions(node("Sigmoid", "c", "s"), node("Mul", "c s", "h")),
        ["QLinearConv", "QLinearSigmoid", "QLinearMul", *QUANTIZED],
    ),
    "hard swish": (
        lambda: between_convolutions(node("HardSwish", "c", "h"), scale=2),
        ["QLinearConv", "Clip", "QLinearMul", *QUANTIZED],
    ),
    "hard swish, a factor and a shift": (
        lambda: between_convolutions(
            node("HardSwish", "c", "s"),
            node("Mul", "s k", "m"),
            node("Add", "m shift", "a"),
            node("Conv", "a u", "e", group=4, pads=[1, 1, 1, 1]),
            node("HardSwish", "e", "t"),
            node("Mul", "k t", "o"),
            node("Add", "o shift", "h"),
            scale=2,
            k=np.float32([0.8]),
            shift=np.float32([-0.9]),
            u=np.float32(0.6) * f(4, 1, 3, 3),
        ),
        ["QLinearConv", "Clip", "QLinearMul", "QLinearConv", "Clip", "QLinearMul", *QUANTIZED],
    ),
    "Relu, a factor and a shift": (
        lambda: between_convolutions(
            node("Relu", "c", "s"),
            node("Mul", "s k", "m"),
            node("Add", "m up", "a"),
            node("Conv", "a u", "e", group=4, pads=[1, 1, 1, 1]),
            node("Relu", "e", "t"),
            node("Mul", "k t", "o"),
            node("Add", "o down", "p"),
            node("Concat", "p a", "g", axis=2),
            node("MaxPool", "g", "h", kernel_shape=[2, 2]),
            scale=2,
            k=np.float32([0.8]),
            up=np.float32([0.3]),
            down=np.float32([-0.6]),
            u=f(4, 1, 3, 3),
        ),
        ["Pad", "QLinearConv", "Clip", "QLinearConv", "Slice", "Slice", "QLinearConcat", "MaxPool", *QUANTIZED],
    ),
    "hard sigmoid of channels": (
        lambda: between_convolutions(
            node("GlobalAveragePool", "c", "p"),
            node("Conv", "p u e", "g"),
            node("HardSigmoid", "g", "s", alpha=0.2),
            node("Mul", "s c", "h"),
            u=f(4, 4, 1, 1),
            e=f(4),
        ),
        ["QLinearConv", "QLinearGlobalAveragePool", "QLinearConv", "Clip", "QLinearMul", *QUANTIZED],
    ),
    "hard sigmoid of a narrow range": (
        lambda: between_convolutions(node("HardSigmoid", "c", "s"), node("Mul", "s c", "h"), scale=0.1),
        ["QLinearConv", *["DequantizeLinear"] * 2, "HardSigmoid", "Mul", "QuantizeLinear", *QUANTIZED],
    ),
    "LeakyRelu": (
        lambda: between_convolutions(node("LeakyRelu", "c", "h", alpha=0.1)),
        ["QLinearConv", "QLinearLeakyRelu", *QUANTIZED],
    ),
    "transposed convolution of its stride": (
        lambda: between_convolutions(
            node("ConvTranspose", "c u e", "t", strides=[2, 2], pads=[1, 1, 0, 0]),
            node("Relu", "t", "h"),
            u=f(4, 4, 4, 2) * np.float32(0.2),
            e=f(4),
        ),
        [
            *("QLinearConv", "QLinearConv", *["Transpose", "Reshape"] * 2, "Slice", "Transpose"),
            *("Shape", "Gather", "Mul", "Div", *QUANTIZED),
        ],
    ),
    "average pools, of all and of fewer at the border": (
        lambda: between_convolutions(
            node("AveragePool", "c", "a", kernel_shape=[3, 3]),
            node("AveragePool", "a", "h", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        ),
        ["QLinearConv", "QLinearConv", "DequantizeLinear", "Clip", "AveragePool", "QuantizeLinear", *QUANTIZED],
    ),
    "Split": (
        lambda: between_convolutions(
            node("Split", "c", "a b", axis=1, num_outputs=2), node("Concat", "b a", "h", axis=1)
        ),
        ["QLinearConv", "Split", "QLinearConcat", *QUANTIZED],
    ),
    "Resize": (
        lambda: between_convolutions(
            node("Resize", "c - twice", "r"),
            node("Concat", "r r", "q", axis=2),
            node("MaxPool", "q", "h", kernel_shape=[2, 2]),
            twice=np.float32([1, 1, 2, 2]),
        ),
        ["QLinearConv", "Transpose", "Gather", "Gather", "Transpose", "QLinearConcat", "MaxPool", *QUANTIZED],
    ),
    "Resize, linear": (
        lambda: between_convolutions(
            node("Resize", "c - twice", "r", mode="linear"),
            node("Resize", "c - twice", "s"),
            node("Concat", "s r", "h", axis=2),
            twice=np.float32([1, 1, 2, 2]),
        ),
        [
            *("QLinearConv", "Transpose", "Gather", "Gather", "Transpose", "DequantizeLinear", "Resize"),
            *("QuantizeLinear", "QLinearConcat", *QUANTIZED),
        ],
    ),
    "DepthToSpace": (
        lambda: between_convolutions(
            node("Conv", "c p", "k"), node("DepthToSpace", "k", "h", blocksize=2, mode="CRD"), p=f(16, 4, 1, 1)
        ),
        [
            *("QLinearConv", "QLinearConv", *["Transpose", "Reshape"] * 2, "Transpose"),
            *("Shape", "Gather", "Mul", "Div", *QUANTIZED),
        ],
    ),
    "Sum": (
        lambda: between_convolutions(
            *(node("Conv", f"c {weight}", f"{weight}c") for weight in ("p", "o")),
            node("Sum", "c pc oc", "h"),
            p=f(4, 4, 1, 1),
            o=f(4, 4, 1, 1),
        ),
        ["QLinearConv", "QLinearConv", "QLinearConv", "QLinearAdd", "QLinearAdd", *QUANTIZED],
    ),
    "MatMul and Add": (lambda: matrix_and_bias("n", 6), ["QuantizeLinear", "QGemm", "QGemm", "Exp"]),
    "MatMul and Add, of more dimensions": (
        lambda: matrix_and_bias(2, 5, 6),
        ["QuantizeLinear", *["Reshape", "QGemm", "Reshape"] * 2, "Exp"],
    ),
    "MatMul and Add, of free ones": (
        lambda: matrix_and_bias("n", 5, 6),
        ["QuantizeLinear", *["MatMulIntegerToFloat", "DequantizeLinear", "Add"] * 2, "QuantizeLinear", "Exp"],
    ),
    "MatMul of stacked matrices": (
        stacked_matrices,
        ["QuantizeLinear", "MatMulIntegerToFloat", "Exp"] * 2,
    ),
    "MatMul and Relu, in float": (
        lambda: bounded_products(node("Relu", "m", "r")),
        ["QuantizeLinear", "MatMulIntegerToFloat", "Max", "Exp"],
    ),
    "MatMul and Clip, in float": (
        lambda: bounded_products(node("Clip", "m low high", "r")),
        ["QuantizeLinear", "MatMulIntegerToFloat", "Max", "Min", "Exp"],
    ),
    "LayerNormalization and GELU in parts": (
        lambda: transformer_parts("LayerNormalization"),
        ["LayerNormalization", "DequantizeLinear", "BiasGelu", *["QuantizeLinear", "MatMulIntegerToFloat"] * 2, "Exp"],
    ),
    "RMSNormalization and GELU in parts": (
        lambda: transformer_parts("RMSNormalization"),
        [
            *["SimplifiedLayerNormalization", "DequantizeLinear", "BiasGelu"],
            *[*["QuantizeLinear", "MatMulIntegerToFloat"] * 2, "Exp"],
        ],
    ),
    "ConvTranspose": (transposed_convolution, ["ConvTranspose", "Sigmoid"]),
    "LSTM": (lambda: recurrent("LSTM", 4), ["LSTM", "Exp"]),
    "LSTM, bidirectional": (lambda: recurrent("LSTM", 4, "bidirectional"), ["LSTM", "Exp"]),
    "GRU": (lambda: recurrent("GRU", 3), ["GRU", "Exp"]),
    "RNN": (lambda: recurrent("RNN", 1, "reverse"), ["RNN", "Exp"]),
    "Gather": (embedding, ["Gather", "Cast", "Mul", "QuantizeLinear", "MatMulIntegerToFloat"]),
    "Gather, tied": (tied_embedding, ["Gather", "QuantizeLinear", "MatMulIntegerToFloat"]),
    "Attention": (
        attention,
        ["QuantizeLinear", *["MatMulIntegerToFloat"] * 3, "Attention", "QuantizeLinear", "MatMulIntegerToFloat"],
    ),
    "If": (branches, ["If", "QuantizeLinear", "MatMulIntegerToFloat"]),
}


class Quantized:
    """A graph with every weight at `bits` bits and every activation at 8, simulated and written."""

    def __init__(self, kind, bits, activations=True):
        # The same numbers whatever ran before: one unit in the last place tells which way a product of codes is rounded
        # that lies halfway, as two draws of sixty have one with shifted hard swishes.
        small_graphs.rng.bit_generator.state = np.random.default_rng(7).bit_generator.state
        proto, self.feeds = KINDS[kind][0]()
        self.prepared = prepare(proto)
        self.names = [site.name for site in self.prepared.sites.activations] if activations else []
        ends = ranges(self.prepared.model, self.names, self.feeds)
        for name, slope in self.prepared.code_operators.hard_sigmoids.items():
            if name in ends:
                ends[name] = range_of_hard_sigmoid(*ends[name], 8, *slope)
        for name, level in self.prepared.code_operators.levels.items():
            if name in ends:
                seen = StreamingHistogram()
                seen.update(np.linspace(*ends[name], 1000, dtype=np.float32))
                ends[name] = range_of_shift(seen, *ends[name], 8, level, "minmax")
        encodings = {name: activation_encoding(*ends[name], 8) for name in self.names}
        for site in self.prepared.sites.weights:
            found = weight_encodings(self.prepared.weight(site.name), site.axis, [bits])
            encodings[site.name] = found.encodings[bits]
        self.simulated = simulate(self.prepared, encodings)
        self.written = lower(self.prepared, self.simulated, encodings)
