"""Every kind of layer, from the float graph to the file: the same numbers, the exact bytes, and what runs."""

import numpy as np
import pytest
import torch
from small_graphs import assert_same_outputs, initializers, operators_run, outputs

from amq_onnx.executor.interpreter import Executor

from .kinds import KINDS, Quantized


@pytest.fixture(params=[2, 3, 8])
def bits(request):
    return request.param


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_computes_what_the_simulated_graph_does(kind, bits):
    quantized = Quantized(kind, bits)
    assert_same_outputs(quantized.simulated, quantized.written, quantized.feeds)
    for level in ("ENABLE_BASIC", "ENABLE_ALL"):
        for ours, theirs in zip(
            outputs(quantized.written, quantized.feeds, level), outputs(quantized.written, quantized.feeds), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.02 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", KINDS)
def test_the_executor_agrees(kind, bits):
    quantized = Quantized(kind, bits)
    for proto in (quantized.simulated, quantized.written):
        executor = Executor(proto)
        found = executor.run({name: torch.from_numpy(array) for name, array in quantized.feeds.items()})
        for name, theirs in zip(executor.outputs, outputs(proto, quantized.feeds), strict=True):
            np.testing.assert_allclose(found[name].detach().numpy(), theirs, rtol=0, atol=0.02 * np.abs(theirs).max())


@pytest.mark.parametrize("kind", KINDS)
def test_weights_take_their_width_and_no_float_copy_stays(kind, bits):
    quantized = Quantized(kind, bits)
    held = initializers(quantized.written)
    sites = quantized.prepared.sites.weights
    assert sites and not {site.name for site in sites} & set(held)
    packed = sum(array.nbytes for array in held.values() if array.dtype in (np.uint8, np.int8) and array.ndim)
    exact = sum(-(-site.elements * bits // 8) for site in sites)
    channels = sum(site.channels for site in sites)
    assert exact <= packed <= exact + channels + 8 * len(sites)


@pytest.mark.parametrize("kind", KINDS)
def test_what_onnxruntime_runs(kind, bits, tmp_path):
    assert sorted(operators_run(Quantized(kind, bits).written, tmp_path, "ENABLE_EXTENDED")) == sorted(KINDS[kind][1])


@pytest.mark.parametrize("kind", ["Conv, 1-D", "Conv, the last", "Gather, tied", "Attention"])
def test_with_float_activations_everything_is_dequantized_at_load(kind, bits, tmp_path):
    quantized = Quantized(kind, bits, activations=False)
    kinds = operators_run(quantized.written, tmp_path, "ENABLE_EXTENDED")
    assert not {"DequantizeLinear", "Cast", "Mul"} & set(kinds)
    assert_same_outputs(quantized.simulated, quantized.written, quantized.feeds)


def test_the_other_branch_is_quantized_as_well():
    quantized = Quantized("If", 3)
    assert_same_outputs(quantized.simulated, quantized.written, quantized.feeds | {"c": np.array(False)})
