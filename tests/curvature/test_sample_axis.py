"""Where tensors count samples, told from one sample's gradient."""

import pytest
import torch

from amq_onnx.curvature.sample_axis import SampleAxis, find_sample_axis, per_sample

SAMPLES, TOKENS, WIDTH = 3, 4, 2


def folded(kind):
    """A tensor whose values are the number of their sample, and where its samples are."""
    numbers = torch.arange(SAMPLES).reshape(SAMPLES, 1, 1).expand(SAMPLES, TOKENS, WIDTH)
    return {
        "front": (numbers, SampleAxis(0)),
        "middle": (numbers.movedim(0, 1), SampleAxis(1)),
        "outer": (numbers.reshape(SAMPLES * TOKENS, WIDTH), SampleAxis(0)),
        "inner": (numbers.movedim(0, 1).reshape(TOKENS * SAMPLES, WIDTH), SampleAxis(0, inner=True)),
        "vector": (torch.arange(SAMPLES), SampleAxis(0)),
    }[kind]


@pytest.mark.parametrize("kind", ["front", "middle", "outer", "inner", "vector"])
def test_found_and_told_apart(kind):
    numbers, axis = folded(kind)
    assert find_sample_axis((numbers == 0).double(), SAMPLES) == axis
    apart = axis.apart(numbers, SAMPLES)
    assert apart.shape[0] == SAMPLES
    assert all((apart[sample] == sample).all() for sample in range(SAMPLES))


def test_none_where_samples_mix_or_nothing_is_known():
    assert find_sample_axis(torch.ones(SAMPLES, 5), SAMPLES) is None
    assert find_sample_axis(torch.zeros(SAMPLES, 5), SAMPLES) is None
    assert find_sample_axis(torch.tensor(1.0), SAMPLES) is None


@pytest.mark.parametrize(
    ("kind", "sums"),
    [
        ("front", [0, TOKENS * WIDTH, 2 * TOKENS * WIDTH]),
        ("outer", [0, TOKENS * WIDTH, 2 * TOKENS * WIDTH]),
        ("middle", [TOKENS * WIDTH] * SAMPLES),  # of 4 tokens in front, which 3 samples can't share out
        ("vector", [0, 1, 2]),
    ],
)
def test_sums_of_each_sample_or_the_total_spread_evenly(kind, sums):
    found = per_sample(folded(kind)[0], SAMPLES)
    assert found.dtype == torch.float64
    assert found.tolist() == sums
