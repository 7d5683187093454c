"""Activations that 8 bits are not enough for stay float, and others don't."""

from dataclasses import replace

import numpy as np
import pytest
from quantized_files import FAST
from small_graphs import f, model, node, operators

from amq_onnx.compiler import Compiler
from amq_onnx.measurement import measure_sensitivity
from amq_onnx.model.random_data import random_data
from amq_onnx.outweighing import outweighing
from amq_onnx.rewriting import prepare
from amq_onnx.sensitivity import ActivationRow, WeightRow


def rows(**losses):
    """Activations with these losses at 8 bits."""
    return {name: ActivationRow(1, None, None, {8: (0.0, 1.0)}, {}, {8: (loss, 0.0)}) for name, loss in losses.items()}


def weight(loss):
    return {"w": WeightRow((2, 2), None, None, {8: 0.1}, {8: (loss, 0.0)})}


@pytest.mark.parametrize(
    ("activations", "of_weights", "expected"),
    [
        (rows(a=0.02, b=0.005, c=0.0004, d=0.0001, e=0), 0.001, ["a", "b"]),
        (rows(a=0.02, b=0.005, c=0.0015, d=0.0001, e=0.0001), 0.002, ["a"]),
        (rows(a=0.02, b=0.0001, c=0.0001), 0.03, []),
        (rows(a=0.0009, b=0.00001, c=0.00001), 0.0, []),
        (rows(a=0.02, b=0.003, c=0.003), 0.0, []),
        (rows(a=0.5, b=0.001), 0.0, []),
        (rows(a=0.5), 0.0, []),
        ({}, 0.1, []),
    ],
    ids=["two", "one", "weights lose more", "nobody notices", "much alike", "of two", "alone", "no activations"],
)
def test_who_outweighs_the_rest(activations, of_weights, expected):
    assert list(outweighing(weight(of_weights), activations)) == expected


def test_narrower_widths_are_what_was_asked_for():
    narrow = {"a": ActivationRow(1, None, None, {4: (0.0, 1.0)}, {}, {4: (0.5, 0.0)})}
    assert outweighing(weight(0.0), narrow) == {}


def test_large_and_small_numbers_that_matter_alike():
    """One feature is ten thousand times as large as the others, until a layer that doesn't mix it with them is done."""
    sizes = np.float32([1e4, 1, 1, 1])
    apart = f(4, 4)
    apart[0, 1:] = apart[1:, 0] = 0
    constants = {"v": f(4, 4), "s": sizes, "w": apart, "r": 1 / sizes, "u": f(4, 3)}
    nodes = [
        node("MatMul", "x v", "h"),
        node("Mul", "h s", "wide"),
        node("MatMul", "wide w", "m"),
        node("Mul", "m r", "even"),
        node("Tanh", "even", "t"),
        node("MatMul", "t u", "y"),
    ]
    proto = model(nodes, {"x": ["n", 4]}, {"y": None}, constants)
    prepared = prepare(proto)
    table = measure_sensitivity(prepared, random_data(proto, 64, 0), (8,), (8,), FAST)
    assert "alone loses" in table.left_float["wide"]
    assert sorted(table.activations) == ["t", "x"]
    found = Compiler(prepared, table, (8,), (8,)).best(10**6)
    assert found.bytes == found.predicted_bytes
    assert operators(found.model).count("QuantizeLinear") == 2
    alike = measure_sensitivity(
        prepared, random_data(proto, 64, 0), (8,), (8,), replace(FAST, float_where_needed=False)
    )
    assert sorted(alike.activations) == ["t", "wide", "x"]
