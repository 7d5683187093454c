"""Random operators: the same numbers in every run, others for another seed or node, distributed as asked."""

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from amq_onnx.executor.interpreter import Executor

from .graphs import model

CASES = {
    "RandomUniform": ({"shape": [4000], "low": -1.0, "high": 3.0}, 1.0, 16 / 12),
    "RandomNormal": ({"shape": [4000], "mean": 2.0, "scale": 0.5}, 2.0, 0.25),
    "RandomUniformLike": ({"high": 2.0}, 1.0, 4 / 12),
    "RandomNormalLike": ({}, 0.0, 1.0),
    "Bernoulli": ({}, 0.25, 0.1875),
    "Multinomial": ({"sample_size": 4000, "dtype": TensorProto.INT64}, 0.75, 0.1875),
}


def drawn(op_type, name="a", **attributes):
    x = torch.log(torch.tensor([[0.25, 0.75]])) if op_type == "Multinomial" else torch.full((4000,), 0.25)
    inputs = {} if op_type in ("RandomUniform", "RandomNormal") else {"x": x}
    kind = attributes.get("dtype", TensorProto.FLOAT)
    node = helper.make_node(op_type, list(inputs), ["y"], name=name, **attributes)
    executor = Executor(model([node], {n: (TensorProto.FLOAT, list(x.shape)) for n in inputs}, {"y": kind}, opset=22))
    first, second = (executor.run(inputs)["y"] for _ in range(2))
    assert torch.equal(first, second)
    return first.numpy()


@pytest.mark.parametrize("op_type", CASES)
def test_random_numbers(op_type):
    attributes, mean, variance = CASES[op_type]
    y = drawn(op_type, **attributes)
    assert y.size == 4000 and abs(y.mean() - mean) < 0.1 and abs(y.var() - variance) < 0.1
    seeded = [drawn(op_type, name, seed=seed, **attributes) for name, seed in (("a", 1.5), ("b", 1.5), ("a", 2.5))]
    np.testing.assert_array_equal(seeded[0], seeded[1])
    for other in (drawn(op_type, "b", **attributes), *seeded):
        assert (y != other).any()
    assert (seeded[0] != seeded[2]).any()
