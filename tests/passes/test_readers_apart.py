"""Readers of codes and readers of floats of one tensor."""

import numpy as np
from small_graphs import assert_rewrites, f, model, node

from amq_onnx.model.sites import find_readers_of_codes, find_sites
from amq_onnx.passes.base import run
from amq_onnx.passes.readers_apart import ReadersApart

WEIGHTS = {"w": f(6, 6), "v": f(6, 6), "g": np.ones(6, np.float32)}
IMAGE = {"x": ["n", 4, 8, 8]}
KERNELS = {"k": f(4, 4, 1, 1), "l": f(4, 4, 1, 1)}
NORM = node("LayerNormalization", "x g", "y0")


def sequence(*nodes, outputs=("y",)):
    used = {name for each in nodes for name in each.input}
    held = {name: array for name, array in WEIGHTS.items() if name in used}
    return model(nodes, {"x": ["n", 5, 6]}, dict.fromkeys(outputs), held)


def apart(proto):
    return run(proto, [ReadersApart(find_readers_of_codes(proto))])


def test_a_residual_behind_a_norm_stays_float():
    nodes = [NORM, node("MatMul", "y0 w", "a"), node("MatMul", "y0 v", "b"), node("Sub", "a b", "c")]
    proto = sequence(*nodes, node("Sub", "c y0", "y"))
    assert find_readers_of_codes(proto) == {"y0": {"a", "b"}}
    rewrite = ReadersApart(find_readers_of_codes(proto))
    found = assert_rewrites(
        rewrite, proto, ["LayerNormalization", "Identity", "MatMul", "MatMul", "Sub", "Sub"], {"x": f(2, 5, 6)}
    )
    (site,) = find_sites(found).activations
    assert site.name != "y0" and site.readers == ("MatMul",)
    assert apart(found) is found


def test_what_moves_values_in_between_reads_codes_too():
    nodes = [
        NORM,
        node("Transpose", "y0", "t", perm=[0, 2, 1]),
        node("Transpose", "t", "u", perm=[0, 2, 1]),
        node("MatMul", "u w", "a"),
        node("Sub", "a y0", "y"),
    ]
    assert find_readers_of_codes(sequence(*nodes)) == {"y0": {"t"}}


def test_where_all_read_codes_nothing_changes():
    proto = sequence(NORM, node("MatMul", "y0 w", "a"), node("MatMul", "y0 v", "b"), node("Sub", "a b", "y"))
    assert apart(proto) is proto


def test_what_an_integer_kernel_makes_is_codes_for_all():
    nodes = [node("Conv", "x k", "a"), node("Relu", "a", "r"), node("Conv", "r l", "b"), node("Exp", "r", "e")]
    proto = model([*nodes, node("Sub", "b e", "y")], IMAGE, {"y": None}, KERNELS)
    assert apart(proto) is proto


def test_hard_sigmoids_of_products_read_codes():
    nodes = [
        node("Conv", "x k", "a"),
        node("Exp", "a", "s"),
        node("Conv", "s l", "b"),
        node("HardSigmoid", "b", "h"),
        node("Mul", "b h", "m"),
        node("Conv", "m k", "c"),
        node("Exp", "c", "y"),
    ]
    proto = model(nodes, IMAGE, {"y": None}, KERNELS)
    assert apart(proto) is proto


def test_an_input_of_the_graph():
    nodes = [node("MatMul", "x w", "a"), node("Sub", "a x", "y")]
    assert find_readers_of_codes(sequence(*nodes)) == {"x": {"a"}}
