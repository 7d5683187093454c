"""Every pair of weight and activation widths on a small residual network, as the pipeline writes it."""

import itertools

import numpy as np
import pytest
from small_graphs import operators_run, outputs, session

from .networks import QuantizedNetwork

LEVELS = ["ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"]
PAIRS = list(itertools.product(range(1, 9), range(2, 9)))


@pytest.fixture(scope="module")
def quantized():
    return QuantizedNetwork()


@pytest.mark.parametrize(("weight_bits", "activation_bits"), PAIRS)
def test_every_level_is_within_a_step_of_the_unoptimized_session(weight_bits, activation_bits, quantized):
    _, written, step = quantized.build(weight_bits, activation_bits)
    (expected,) = outputs(written, quantized.feeds)
    for level in LEVELS:
        (found,) = outputs(written, quantized.feeds, level)
        assert np.abs(found - expected).max() <= 1.001 * step, level


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 8), (3, 4), (8, 8), (7, 2)])
def test_the_written_file_is_the_simulated_graph_but_for_the_rounding_of_biases(
    weight_bits, activation_bits, quantized
):
    simulated, written, step = quantized.build(weight_bits, activation_bits)
    (ours,), (theirs,) = outputs(written, quantized.feeds), outputs(simulated, quantized.feeds)
    assert np.abs(ours - theirs).max() <= 1.001 * step
    assert (ours == theirs).mean() >= 0.5


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 8), (3, 4), (5, 8), (8, 8), (7, 2)])
def test_all_layers_run_on_integer_kernels(weight_bits, activation_bits, quantized, tmp_path):
    _, written, _ = quantized.build(weight_bits, activation_bits)
    kinds = operators_run(written, tmp_path, "ENABLE_EXTENDED")
    assert kinds.count("QLinearConv") == 2
    assert kinds.count("QGemm") == 1
    assert kinds.count("QLinearAdd") == 1
    assert kinds.count("QLinearGlobalAveragePool") == 1
    assert not {"Conv", "Gemm", "Add", "GlobalAveragePool", "Gather", "Cast", "Reshape"} & set(kinds)


def test_seven_bit_weights_and_less_need_no_session_option(quantized):
    """16-bit sums of CPUs without VNNI can't overflow: 255 * 64 * 2 < 32768."""
    _, written, step = quantized.build(7, 8)
    (expected,) = outputs(written, quantized.feeds)
    (found,) = session(written, "ENABLE_ALL", exact=False).run(None, quantized.feeds)
    assert np.abs(found - expected).max() <= 1.001 * step


def test_the_batch_stays_free(quantized):
    _, written, _ = quantized.build(4, 8)
    feeds = {"x": quantized.feeds["x"]}
    (three,) = outputs(written, feeds)
    (one,) = outputs(written, {"x": feeds["x"][:1]})
    np.testing.assert_array_equal(one, three[:1])
