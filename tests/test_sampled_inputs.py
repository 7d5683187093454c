"""What weights meet: windows of Conv and rows of matrix products, and what follows for the error of outputs."""

import numpy as np
import pytest
import small_graphs
import torch
from small_graphs import f, model, node
from test_expected_inputs import LAYERS

from amq_onnx.executor.interpreter import Executor
from amq_onnx.executor.ops.windows import windows
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.weight_ranges import weight_encodings
from amq_onnx.rewriting import prepare
from amq_onnx.sampled_inputs import SampledInputs

KINDS = {kind: layer for kind, layer in LAYERS.items() if "Transpose" not in kind} | {
    "Conv with pads of its own": ([node("Conv", "x w", "y", auto_pad="SAME_LOWER", strides=[2, 3])], (4, 6, 2, 3), 4),
    "MatMul": ([node("MatMul", "x w", "y")], (5, 4), 4),
    "Gemm, all transposed": (
        [node("Flatten", "x", "l"), node("Transpose", "l", "t"), node("Gemm", "t w", "y", transA=1, alpha=0.5)],
        (150, 4),
        4,
    ),
}


@pytest.fixture(autouse=True)
def own_numbers():
    """The same weights and data whichever tests ran before: how much scales gain hangs on them."""
    small_graphs.rng.bit_generator.state = np.random.default_rng(7).bit_generator.state


def prepared(kind):
    nodes, shape, channels = KINDS[kind]
    constants = {"w": f(*shape)} | ({"b": f(channels)} if any("b" in item.input for item in nodes) else {})
    return prepare(model(nodes, {"x": ["n", 6, 5, 5]}, {"y": None}, constants))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_times_weights_are_the_outputs(kind):
    ready = prepared(kind)
    (layer,), executor = ready.linear_layers, Executor(ready.model)
    x = torch.from_numpy(f(3, 6, 5, 5))
    found = executor.run({"x": x}, [layer.data, layer.output])
    rows = SampledInputs(executor, [layer])._rows(layer, found[layer.data], 3)
    weight = np.moveaxis(ready.weight("w"), layer.axis, 0)
    weight = weight.reshape(layer.groups, len(weight) // layer.groups, -1)
    sums = np.einsum("gin,gcn->igc", rows.numpy(), weight).reshape(rows.shape[1], -1)
    output = found[layer.output].numpy() * (2 if "all transposed" in kind else 1)
    if layer.bias and layer.operator != "MatMul":
        bias = executor.initializers[layer.bias].numpy()
        output = output - bias.reshape([1, -1] + [1] * (output.ndim - 2))
    places = (np.moveaxis(output, 1, -1) if layer.operator == "Conv" else output).reshape(-1, sums.shape[1])
    distances = np.abs(sums[:, None] - places[None]).max(2)
    assert distances.min(1).max() < 1e-4
    assert len(set(distances.argmin(1))) >= 3


@pytest.mark.parametrize(("rank", "dilation"), [(1, 2), (2, 1), (3, 2)])
def test_windows_of_any_rank(rank, dilation):
    sizes, kernel = [7, 8, 6][:rank], [3, 2, 2][:rank]
    pads, strides = [1, 0, 2][:rank] + [0, 1, 1][:rank], [2, 1, 2][:rank]
    attributes = {"pads": pads, "strides": strides, "dilations": [dilation] * rank}
    weight = f(4, 3, *kernel)
    proto = model([node("Conv", "x w", "y", **attributes)], {"x": ["n", 3, *sizes]}, {"y": None}, {"w": weight})
    executor, x = Executor(proto), torch.from_numpy(f(2, 3, *sizes))
    seen = windows(executor.node("y"), x, kernel)
    inner = [1, *range(2 + rank, 2 + 2 * rank)]
    product = torch.tensordot(seen, torch.from_numpy(weight), (inner, list(range(1, 2 + rank)))).movedim(-1, 1)
    np.testing.assert_allclose(product, executor.run({"x": x})["y"], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_scales_for_outputs_lower_the_error_of_outputs(kind):
    ready = prepared(kind)
    (layer,), (site,), executor = ready.linear_layers, ready.sites.weights, Executor(ready.model)
    x = torch.from_numpy(f(64, 6, 5, 5).cumsum(-1).cumsum(-2) + np.float32(2))
    found = executor.run({"x": x}, [layer.data, layer.output])
    sampled = SampledInputs(executor, [layer])
    for part in found[layer.data].split(16) if layer.data == "x" else [found[layer.data]]:
        sampled.update({layer.data: part}, 16 if layer.data == "x" else 64)
    error = sampled.result()["w"]

    def change(encodings):
        rounded = torch.from_numpy(round_trip(ready.weight("w"), encodings[3]))
        output = executor.run({"x": x, "w": rounded}, [layer.output])[layer.output]
        return float((output - found[layer.output]).square().mean())

    plain = change(weight_encodings(ready.weight("w"), site.axis, [3]).encodings)
    ours = change(weight_encodings(ready.weight("w"), site.axis, [3], output_error=error).encodings)
    assert ours < 0.95 * plain


def test_a_weight_that_something_else_reads_and_a_transposed_convolution_are_left_out():
    nodes = [node("Conv", "x w", "a"), node("Conv", "x w", "b"), node("ConvTranspose", "x v", "c")]
    proto = model(nodes, {"x": ["n", 4, 4, 4]}, dict.fromkeys("abc"), {"w": f(4, 4, 3, 3), "v": f(4, 4, 3, 3)})
    ready = prepare(proto)
    assert len(ready.linear_layers) == 3
    assert SampledInputs(Executor(ready.model), ready.linear_layers).names() == []


def test_long_windows_are_kept_up_to_a_number_and_short_ones_summed_whole():
    ready = prepare(model([node("MatMul", "x w", "y")], {"x": ["n", 1100]}, {"y": None}, {"w": f(1100, 2)}))
    sampled = SampledInputs(Executor(ready.model), ready.linear_layers)
    for _ in range(3):
        sampled.update({"x": torch.from_numpy(f(500, 1100))}, 500)
    assert sampled.result()["w"].factor.shape == (1, 1024, 1100)
