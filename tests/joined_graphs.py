"""Graphs whose output joins boxes and their scores, as detectors have it."""

import numpy as np
from small_graphs import model, node


def level(number, last="Sigmoid", axis=1):
    """Boxes [n, 4, 6] and scores [n, 5, 6] of one level, joined as `j` and its number; logits are `l` and that."""
    a, b, c, d = (f"{name}{number}" for name in "blsj")
    return [
        node("MatMul", f"v{number} x", a),
        node("MatMul", f"w{number} x", b),
        node(last, b, c),
        node("Concat", f"{a} {c}", d, axis=axis),
    ]


def joined(nodes, size=1.0, **constants):
    """x [n, 8, 6] -> nodes -> y; boxes are hundreds, logits `size` times the sum of x."""
    for number in "01":
        constants[f"v{number}"] = np.full((4, 8), 100, np.float32)
        constants[f"w{number}"] = np.full((5, 8), size, np.float32)
    return model(nodes, {"x": ["n", 8, 6]}, {"y": None}, constants)
