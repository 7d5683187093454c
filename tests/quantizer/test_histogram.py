"""The streaming histogram: bins don't depend on how the stream is cut."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amq_onnx.quantizer.histogram import StreamingHistogram


def filled(values, cuts=(), bins=64):
    histogram = StreamingHistogram(bins)
    for part in np.split(np.asarray(values, np.float32), cuts):
        histogram.update(part)
    return histogram


def assert_same(one, other):
    assert (one.minimum, one.maximum, one.count) == (other.minimum, other.maximum, other.count)
    for ours, theirs in zip(one.centres(), other.centres(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e8, 1e8, width=32), min_size=1, max_size=60), st.data())
def test_any_cut_of_the_stream_gives_the_same_bins(values, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(values)), max_size=6)))
    assert_same(filled(values), filled(values, cuts))


def test_the_least_float_keeps_its_sign_beside_large_values():
    values = [0.0, -1.401298464324817e-45, 64.0]
    assert_same(filled(values), filled(values, [2]))


def test_order_of_the_stream_does_not_matter():
    values = np.random.default_rng(0).standard_cauchy(5000)
    assert_same(filled(values, [10, 20, 4000]), filled(values[::-1], [3]))


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_counts_are_numpys(scale, shift):
    values = ((np.random.default_rng(1).standard_normal(40_000) + shift) * scale).astype(np.float32)
    histogram = filled(values, [7, 30_000], bins=512)
    centres, counts = histogram.centres()
    assert counts.sum() == histogram.count == len(values)
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    width = np.diff(centres[1:-1]).min()  # the outermost centres are clipped to what was seen
    assert np.abs(values).max() / 512 < width <= np.abs(values).max() / 256
    edges = np.arange(-513, 514) * width
    expected, _ = np.histogram(values.astype(np.float64), edges)
    np.testing.assert_array_equal(counts, expected[expected > 0])
    assert ((values.min() <= centres) & (centres <= values.max())).all()


def test_a_value_a_million_times_larger_keeps_every_count():
    histogram = filled([0.001, -0.001, 0.002, 1000.0, -1000.0], [3])
    centres, counts = histogram.centres()
    assert counts.sum() == 5
    assert counts[centres < -500].sum() == counts[centres > 500].sum() == 1


@pytest.mark.parametrize("magnitude", [1.0, 64.0, 2.0**-100, np.finfo(np.float32).max])
def test_the_extremes_fall_into_bins(magnitude):
    histogram = filled([magnitude, -magnitude], [1])
    centres, counts = histogram.centres()
    assert counts.tolist() == [1, 1]
    np.testing.assert_allclose(centres, [-magnitude, magnitude], rtol=0.05)


@pytest.mark.parametrize("magnitude", [1e-38, 1e-42, 1e-45])
def test_numbers_too_small_for_bins_of_their_own_count_by_sign(magnitude):
    histogram = filled([magnitude, 0.0, -magnitude], [1])
    centres, counts = histogram.centres()
    assert counts.tolist() == [1, 2]
    assert (np.abs(centres) <= np.float32(magnitude)).all()
    assert_same(histogram, filled([-magnitude, magnitude, 0.0]))


def test_zeros_alone_then_values():
    histogram = filled(np.zeros(5))
    centres, counts = histogram.centres()
    assert (centres.tolist(), counts.tolist(), histogram.count) == ([0.0], [5], 5)
    histogram.update(np.array([-1.0, 1.0], np.float32))
    assert_same(histogram, filled([-1.0, 1.0, *[0.0] * 5]))


def test_nothing_seen():
    histogram = StreamingHistogram()
    histogram.update(np.zeros((0, 3), np.float32))
    assert histogram.count == 0
    assert histogram.centres()[1].size == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_raises_and_counts_nothing(value):
    histogram = filled([1.0, 2.0])
    with pytest.raises(ValueError, match="not finite"):
        histogram.update(np.array([5.0, value], np.float32))
    assert_same(histogram, filled([1.0, 2.0]))


@pytest.mark.parametrize("bins", [0, 2, 3, 100])
def test_bins_that_cannot_merge_are_refused(bins):
    with pytest.raises(ValueError, match="power of two"):
        StreamingHistogram(bins)
