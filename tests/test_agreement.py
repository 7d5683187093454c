"""Layer by layer, onnxruntime and the executor agree to one quantization step: benchmarks/agreement.py on digits."""

from __future__ import annotations

import importlib
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
LEVELS = ("none", "basic", "extended", "all")
SIMULATED, WRITTEN = "simulated graph", "file's own graph"


@pytest.fixture(scope="module")
def agreement():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module("agreement")


@pytest.fixture(scope="module")
def digits(agreement):
    case = next(case for case in agreement.CASES if case.name == "digits")
    return agreement.Network(replace(case, images=16))


@pytest.mark.parametrize(("weight_bits", "activation_bits"), [(1, 2), (2, 8), (4, 4), (5, 3), (8, 8)])
def test_every_layer_is_within_a_step_of_the_simulation_at_every_level(weight_bits, activation_bits, agreement, digits):
    agreements, runs = agreement.compare_levels(digits.quantized(weight_bits, activation_bits), digits.batch)
    for level in LEVELS:
        assert not runs[level].faults
        simulated, written = agreements[level, SIMULATED], agreements[level, WRITTEN]
        assert simulated.steps.sum() == written.steps.sum() > 100_000
        assert simulated.steps[2:].sum() == written.steps[2:].sum() == 0
        # What is left is the rounding of ties; the simulation differs by the rounding of biases as well.
        assert written.steps[1] < 1e-4 * written.steps.sum()
        assert written.output_error < 1e-5


def test_two_steps_of_one_code_are_found(agreement, digits):
    quantized = digits.quantized(8, 8)
    (found, _), site = agreement.run_at(quantized.telling, "all", digits.batch), digits.activations[-1]
    codes = found[quantized.codes[site]].astype(np.int64)
    codes.flat[0] += 2 if codes.flat[0] < 200 else -2
    shifted = found | {quantized.codes[site]: codes.astype(np.uint8)}
    assert quantized.compare(WRITTEN, digits.batch, found).beyond == {}
    assert set(quantized.compare(WRITTEN, digits.batch, shifted).beyond) == {site}


@pytest.mark.parametrize("weight_bits", range(1, 9))
def test_all_pairs_load_and_run_on_integer_kernels(weight_bits, agreement, digits):
    for activation_bits in range(2, 9):
        quantized = digits.quantized(weight_bits, activation_bits)
        outputs, kinds = agreement.run_at(quantized.file, "all", digits.batch)
        assert all(np.isfinite(array).all() for array in outputs.values())
        assert kinds["QLinearConv"] == digits.convolutions
        assert not kinds["Conv"] + kinds["FusedConv"]


def test_all_pairs_are_tried(agreement):
    assert set(agreement.PAIRS) == set(itertools.product(range(1, 9), range(2, 9)))
