"""Convolutions whose output channels suit no kernel: the graph afterwards, the same codes, what runs."""

import numpy as np
import onnx
import pytest
from small_graphs import (
    assert_left_alone,
    assert_same_outputs,
    f,
    initializers,
    model,
    node,
    operators,
    operators_run,
    session,
)

from amq_onnx.passes.align_outputs import AlignOutputs
from amq_onnx.passes.base import run

SCALES = {
    "s": np.float32(0.05),
    "z": np.uint8(120),
    "t": np.float32(0.5),
    "low": np.uint8(100),
    "high": np.uint8(180),
    "o": np.uint8(0),
}


class Network:
    """Quantized convolutions one behind the other; `nodes` and `constants` may be added to."""

    def __init__(self, channels=4):
        self.channels = channels
        self.rng = np.random.default_rng(channels)
        self.nodes = [node("QuantizeLinear", "x s z", "xq"), node("DequantizeLinear", "xq s z", "xd")]
        self.constants = dict(SCALES)

    def conv(self, data, name, maps, inputs, kernel=1, group=1, bias="int32", behind=(), bounded=False, scale="t"):
        """`name`q and `name`d: codes and values of a Conv of `data`, quantized behind the operators `behind`."""
        self.constants |= {
            f"{name}w": self.rng.integers(-127, 128, (maps, inputs, kernel, kernel)).astype(np.int8),
            f"{name}ws": self.rng.uniform(0.01, 0.02, maps).astype(np.float32),
            f"{name}wz": np.zeros(maps, np.int8),
        }
        self.nodes.append(node("DequantizeLinear", f"{name}w {name}ws {name}wz", f"{name}wd", axis=0))
        given = f"{data} {name}wd"
        if bias == "int32":
            self.constants[f"{name}b"] = self.rng.integers(-500, 500, maps).astype(np.int32)
            data_scale = "s" if data == "xd" else "t"
            self.nodes.append(node("Mul", f"{data_scale} {name}ws", f"{name}bs"))
            self.nodes.append(node("DequantizeLinear", f"{name}b {name}bs", f"{name}bd", axis=0))
            given += f" {name}bd"
        elif bias == "float":
            self.constants[f"{name}b"] = f(maps)
            given += f" {name}b"
        made = f"{name}c"
        self.nodes.append(node("Conv", given, made, group=group, pads=[kernel // 2] * 4))
        for operator in behind:
            self.nodes.append(node(operator, made, f"{made}{operator[0]}"))
            made += operator[0]
        codes, zero = f"{name}q", "o" if behind else "z"
        self.nodes.append(node("QuantizeLinear", f"{made} {scale} {zero}", codes))
        if bounded:
            self.nodes.append(node("Clip", f"{codes} low high", f"{name}k"))
            codes = f"{name}k"
        self.nodes.append(node("DequantizeLinear", f"{codes} {scale} {zero}", f"{name}d"))
        return f"{name}d"

    def depthwise(self, data, name, channels, kernel=3, **more):
        return self.conv(data, name, channels, 1, kernel, channels, **more)

    def model(self, *names):
        made = model(self.nodes, {"x": ["n", self.channels, 6, 6]}, dict.fromkeys(names), self.constants)
        return onnx.shape_inference.infer_shapes(made)

    @property
    def feeds(self):
        return {"x": f(2, self.channels, 6, 6)}


def chain(channels=6, **first):
    net = Network()
    net.conv("xd", "a", channels, 4, **first)
    net.depthwise("ad", "b", channels)
    net.conv("bd", "c", 5, channels)
    return net


def groups(proto):
    return [
        attribute.i
        for item in proto.graph.node
        if item.op_type == "Conv"
        for attribute in item.attribute
        if attribute.name == "group"
    ]


def assert_aligned(net, outputs_of, expected_groups, slices, exact=True):
    """exact: see `session`; onnxruntime 1.31 refuses to load a weight with two readers that way."""
    before = net.model(*outputs_of)
    after = run(before, [AlignOutputs()])
    onnx.checker.check_model(after, full_check=True)
    assert groups(after) == expected_groups
    assert operators(after).count("Slice") == slices
    assert_same_outputs(before, after, net.feeds)
    feeds = net.feeds
    found = (session(proto, "ENABLE_ALL", exact).run(None, feeds) for proto in (before, after))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    assert run(after, [AlignOutputs()]) is after
    return after


@pytest.mark.parametrize(
    "first",
    [
        {},
        {"bias": None},
        {"bias": "float"},
        {"behind": ["Relu"]},
        {"bounded": True},
        {"behind": ["Relu", "Relu"], "bounded": True},
    ],
    ids=str,
)
def test_the_convolutions_around_it_add_and_drop_channels(first, tmp_path):
    net = chain(**first)
    after = assert_aligned(net, ["cd"], [1, 16, 1], slices=0)
    assert operators(after).count("Pad") == 3
    assert all(initializers(after)[name].shape == net.constants[name].shape for name in ("aw", "bw", "cw"))
    found = operators_run(after, tmp_path)
    assert found.count("QLinearConv") == 3 and "Pad" not in found


@pytest.mark.parametrize("channels", [2, 15, 17, 40])
def test_up_to_the_next_sixteen(channels):
    assert_aligned(chain(channels), ["cd"], [1, -(-channels // 16) * 16, 1], slices=0)


def test_one_behind_the_other():
    net = Network()
    net.conv("xd", "a", 6, 4)
    net.depthwise("ad", "b", 6)
    net.depthwise("bd", "c", 6, kernel=5, behind=["Relu"])
    net.conv("cd", "e", 3, 6)
    assert_aligned(net, ["ed"], [1, 16, 16, 1], slices=0)


@pytest.mark.parametrize(("maps", "kernel"), [(1, 3), (15, 3), (3, 5)])
def test_few_outputs_become_sixteen(maps, kernel):
    net = Network()
    net.conv("xd", "a", maps, 4, kernel, behind=["Relu"])
    net.conv("ad", "b", 20, maps)
    after = assert_aligned(net, ["bd", "ad"], [1, 1], slices=1)
    assert operators(after).count("Pad") == 2


def test_others_read_the_first_channels():
    net = chain()
    net.conv("ad", "g", 3, 6)
    net.nodes += [
        node("GlobalAveragePool", "bd", "p"),
        node("Add", "ad bd", "y"),
        node("MaxPool", "bq", "m", kernel_shape=[2, 2]),
        node("DequantizeLinear", "m t z", "md"),
    ]
    assert_aligned(net, ["cd", "p", "y", "md", "gd"], [1, 16, 1, 1], slices=2)


def test_what_leaves_the_graph_has_its_own_channels():
    assert_aligned(chain(), ["cd", "bd"], [1, 16, 1], slices=1)


def few(inputs, kernel):
    net = Network(inputs)
    net.conv("xd", "a", 3, inputs, kernel)
    return net


def two_quantizers():
    net = chain()
    net.nodes += [node("QuantizeLinear", "ac s z", "h"), node("DequantizeLinear", "h s z", "hd")]
    net.depthwise("hd", "i", 6)
    return net


def test_two_quantizers_of_one_output():
    assert_aligned(two_quantizers(), ["cd", "id"], [1, 16, 16, 1], slices=1)


def second_reader(net, weight, data="xd", kernel=1, bias=None, maps=6):
    """`ud`: what a second Conv makes with the weight of another one, and its own bias or that of the other."""
    net.constants[f"{weight}w"] //= 2  # 7 bits don't overflow
    given = f"{data} {weight}wd"
    if bias == "own":
        net.constants["ub"] = np.arange(maps, dtype=np.int32)
        net.nodes += [node("Mul", f"s {weight}ws", "ubs"), node("DequantizeLinear", "ub ubs", "ubd", axis=0)]
        given += " ubd"
    elif bias == "same":
        given += f" {weight}bd"
    net.nodes += [
        node("Conv", given, "u", pads=[kernel // 2] * 4, strides=[2, 2]),
        node("QuantizeLinear", "u t z", "uq"),
        node("DequantizeLinear", "uq t z", "ud"),
    ]
    return net


@pytest.mark.parametrize("bias", [None, "own", "same"])
def test_another_reader_of_a_weight_keeps_its_channels(bias):
    net = second_reader(chain(), "a", bias=bias)
    after = assert_aligned(net, ["cd", "ud"], [1, 16, 1], slices=0, exact=False)
    assert initializers(after)["aws"].shape == (6,)


@pytest.mark.parametrize(
    ("first", "bias"), [("int32", None), ("int32", "own"), ("int32", "same"), ("float", None), ("float", "own")]
)
def test_both_readers_of_a_weight_get_more_channels(first, bias):
    net = Network()
    net.conv("xd", "a", 3, 4, 3, bias=first)
    second_reader(net, "a", kernel=3, bias=bias, maps=3)
    after = assert_aligned(net, ["ad", "ud"], [1], slices=2, exact=False)
    assert operators(after).count("Pad") == 2


def test_another_reader_of_a_scale_keeps_it():
    net = chain()
    net.nodes += [node("Mul", "aws s", "u")]
    assert_aligned(net, ["cd", "u"], [1, 16, 1], slices=0)


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_filter_of_one_channel_is_no_depthwise_one(kernel):
    net = Network(1)
    net.conv("xd", "a", 1, 1, kernel, behind=["Relu"])
    before = net.model("ad")
    if kernel == 3:
        assert_left_alone(AlignOutputs(), before)
    else:
        assert_aligned(net, ["ad"], [1], slices=1)


def float_maker():
    net = Network(6)
    net.depthwise("xd", "b", 6)
    return net.model("bd")


def largest_of_two():
    net = Network()
    net.conv("xd", "a", 6, 4)
    net.conv("xd", "e", 6, 4)
    net.nodes += [node("Max", "aq eq", "m"), node("DequantizeLinear", "m t z", "md")]
    net.depthwise("md", "b", 6)
    return net.model("bd")


def pooled():
    net = chain()
    index = next(i for i, item in enumerate(net.nodes) if item.output[0] == "ad")
    net.nodes[index].input[0] = "m"
    net.nodes.insert(index, node("MaxPool", "aq", "m", kernel_shape=[2, 2]))
    return net.model("cd")


@pytest.mark.parametrize(
    "make",
    [
        lambda: chain(16).model("cd"),
        lambda: chain(1).model("cd"),
        lambda: few(6, 3).model("ad"),
        lambda: few(4, 1).model("ad"),
        lambda: chain().model("cd", "ac"),
        float_maker,
        pooled,
        largest_of_two,
    ],
    ids=[
        "sixteen",
        "one",
        "inputs not in fours",
        "1x1",
        "an output made float",
        "no Conv in front",
        "pooled",
        "of two",
    ],
)
def test_others_stay(make):
    assert_left_alone(AlignOutputs(), make())
