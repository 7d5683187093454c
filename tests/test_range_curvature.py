"""Histograms of activations, weighed by the curvature of their values."""

import numpy as np
import pytest
import torch
from small_graphs import f, model, node

from amq_onnx.curvature.losses import SoftmaxLoss
from amq_onnx.executor.interpreter import Executor
from amq_onnx.model.data import Dataset
from amq_onnx.model.heads import Head
from amq_onnx.model.inputs import input_specs
from amq_onnx.quantizer.histogram import StreamingHistogram
from amq_onnx.range_curvature import weigh_histograms


@pytest.mark.parametrize("join", ["Concat", "Add"])
def test_what_is_joined_is_weighed_as_if_it_were_asked_for_alone(join):
    """torch hands out parts of one gradient, or one gradient twice, for the inputs of a join and its output."""
    joined = node("Concat", "a b", "c", axis=1) if join == "Concat" else node("Add", "a b", "c")
    nodes = [node("MatMul", "x u", "a"), node("MatMul", "x v", "b"), joined, node("MatMul", "c w", "y")]
    constants = {"u": f(3, 4), "v": f(3, 4), "w": f(8 if join == "Concat" else 4, 5)}
    proto = model(nodes, {"x": ["n", 3]}, {"y": None}, constants)
    batch = {"x": f(16, 3)}
    executor = Executor(proto)
    found = executor.run({"x": torch.from_numpy(batch["x"])}, ["a", "b", "c"])

    def weights(*names):
        histograms = {name: StreamingHistogram() for name in names}
        for name, histogram in histograms.items():
            histogram.update(found[name].numpy())
        data = Dataset(lambda: [batch], input_specs(proto), "the data")
        weigh_histograms(
            executor, data, histograms, [Head("y", "softmax", -1, "y", "")], [SoftmaxLoss()], batch_size=16
        )
        return {name: histogram.centres(weighted=True)[1] for name, histogram in histograms.items()}

    together = weights("a", "b", "c")
    for name in "abc":
        np.testing.assert_allclose(together[name], weights(name)[name], rtol=1e-5)
