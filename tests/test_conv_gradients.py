"""Gradients of a Conv's weight by sample, against autograd's of one sample at a time."""

import numpy as np
import pytest
import torch
from small_graphs import model, node

import amq_onnx.conv_gradients
from amq_onnx.conv_gradients import weight_gradients
from amq_onnx.curvature.sample_axis import SampleAxis
from amq_onnx.executor.interpreter import Executor
from amq_onnx.perturbation import Pulled, QuantizedWeight, slopes_of_differences

SAMPLES = 3
SHAPES = {
    "pointwise": ((5, 2, 1, 1), (4, 6), {}),
    "pointwise, strided": ((5, 2, 1, 1), (5, 6), {"strides": [2, 3]}),
    "padded at one end": ((4, 2, 3, 2), (6, 5), {"pads": [0, 1, 2, 0]}),
    "same": ((4, 2, 3, 4), (7, 7), {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    "dilated": ((4, 2, 3, 3), (9, 9), {"dilations": [2, 3], "strides": [1, 2]}),
    "of a line": ((4, 2, 3), (9,), {"pads": [1, 1]}),
    "of a volume": ((2, 2, 2, 1, 2), (4, 3, 4), {}),
}


def setting(shape, spatial, attributes, dtype=torch.float64):
    rng = np.random.default_rng(0)
    held = {"w": rng.standard_normal(shape).astype(np.float32), "b": rng.standard_normal(shape[0]).astype(np.float32)}
    proto = model([node("Conv", "x w b", "y", **attributes)], {"x": ["n", shape[1], *spatial]}, {"y": None}, held)
    executor = Executor(proto, dtype=dtype)
    x = torch.from_numpy(rng.standard_normal((SAMPLES, shape[1], *spatial))).to(dtype)
    y = executor.run({"x": x}, ["y"])["y"]
    return executor, x, torch.from_numpy(rng.standard_normal(y.shape)).to(dtype), y


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("held", [1, SAMPLES])
def test_each_samples_gradient_is_its_own(case, held, monkeypatch):
    executor, x, gradient, _ = setting(*case)
    weight = executor.initializers["w"]
    monkeypatch.setattr(amq_onnx.conv_gradients, "_BYTES", held * weight.numel() * 8)
    parts = list(weight_gradients(executor.node("y"), x, gradient, weight))
    assert [len(part) for part in parts] == [held] * (SAMPLES // held)
    for sample, found in enumerate(torch.cat(parts)):
        variable = weight.clone().requires_grad_()
        y = executor.run({"x": x[[sample]], "w": variable}, ["y"])["y"]
        (expected,) = torch.autograd.grad(y, variable, gradient[[sample]])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("case", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_slopes_are_those_of_the_outputs(case, dtype):
    """What a bias makes up for counts."""
    executor, x, gradient, y = setting(*case, dtype)
    weight = executor.initializers["w"]
    values = {bits: (weight / step).round() * step for bits, step in ((3, 0.5), (8, 0.01))}
    shifts = {3: {"y": torch.linspace(-1, 1, len(weight), dtype=dtype)}, 8: {}}
    site = QuantizedWeight(executor, "w", ("y",), values, shifts, {"y": 1})
    # By image; of one sample with several, as of a video's frames; of the whole batch.
    for axis, samples in ((SampleAxis(0), SAMPLES), (SampleAxis(0), 1), (None, SAMPLES)):
        given = Pulled({"y": gradient}, {"y": axis}, samples), {"x": x, "y": y}
        found, expected = site.slopes(*given), slopes_of_differences(site, *given)
        assert list(found) == [3, 8]
        for bits, each in expected.items():
            scale = float(each.abs().max())
            error = scale * (1e-12 if dtype == torch.float64 else 1e-4)
            torch.testing.assert_close(found[bits], each, rtol=0, atol=error)
