"""Ranges of activations against brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amq_onnx.quantizer.activation_ranges import (
    activation_encoding,
    activation_range,
    range_of_hard_sigmoid,
    range_of_shift,
)
from amq_onnx.quantizer.activation_ranges import mean_squared_error as error_of_bins
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.histogram import StreamingHistogram

rng = np.random.default_rng(0)
SAMPLES = {
    "normal": rng.standard_normal(20_000),
    "relu": np.maximum(rng.standard_normal(20_000), 0),
    "relu6": np.clip(rng.standard_normal(20_000) * 4, 0, 6),
    "swish-like": (lambda x: x / (1 + np.exp(-x)))(rng.standard_normal(20_000) * 2),
    "skewed": np.append(rng.standard_normal(20_000) * 0.3, [8.0, -1.0]),
    "heavy tails": rng.standard_t(3, 20_000),
    "outliers on one side": np.append(rng.uniform(-1, 1, 20_000), np.full(20, 8.0)),
    "positive, far from zero": rng.uniform(5, 6, 20_000),
    "negative": -np.abs(rng.standard_normal(20_000)),
}


def histogram_of(values):
    histogram = StreamingHistogram()
    histogram.update(np.asarray(values, np.float32))
    return histogram


def mean_squared_error(values, low, high, bits):
    values = np.asarray(values, np.float32)
    error = round_trip(values, activation_encoding(low, high, bits)).astype(np.float64) - values
    return np.square(error).mean()


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_error_of_the_bins_is_that_of_the_numbers(name, bits):
    values = np.asarray(SAMPLES[name], np.float32)
    low, high = activation_range(histogram_of(values), bits, "mse")
    exact = mean_squared_error(values, low, high, bits)
    assert error_of_bins(histogram_of(values), low, high, bits) == pytest.approx(exact, rel=0.05)


def test_nothing_seen_has_no_error():
    assert error_of_bins(StreamingHistogram(), 0.0, 1.0, 4) == 0.0


def brute_force(values, bits):
    """Least error over a grid of 100 lower by 100 upper ends, by the encodings themselves on a thinned sample."""
    thin = np.sort(np.asarray(values, np.float32))[:: max(1, len(values) // 2000)]
    low, high = min(float(thin.min()), 0.0), max(float(thin.max()), 0.0)
    factors = np.geomspace(1.0, 0.01, 60)
    pairs = {(low * a, high * b) for a in (factors if low else [1.0]) for b in (factors if high else [1.0])}
    return thin, min(mean_squared_error(thin, *pair, bits) for pair in pairs)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", SAMPLES)
def test_mse_is_near_the_best_of_a_fine_grid(kind, bits):
    thin, best = brute_force(SAMPLES[kind], bits)
    found = mean_squared_error(thin, *activation_range(histogram_of(thin), bits), bits)
    assert found <= 1.05 * best


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", SAMPLES)
def test_mse_errs_no_more_than_minmax(kind, bits):
    values = SAMPLES[kind]
    histogram = histogram_of(values)
    mse, minmax = (
        mean_squared_error(values, *activation_range(histogram, bits, method), bits) for method in ("mse", "minmax")
    )
    assert mse <= 1.001 * minmax


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_a_range_from_zero_to_six_never_exceeds_six(bits, method):
    low, high = activation_range(histogram_of(SAMPLES["relu6"]), bits, method)
    encoding = activation_encoding(low, high, bits)
    assert (low, encoding.zero_point) == (0.0, 0)
    assert float(encoding.scale * np.float32(2**bits - 1)) <= 6.0
    if method == "minmax":
        assert float(encoding.scale * np.float32(2**bits - 1)) > 5.999


@given(st.floats(2.0**-60, 2.0**60, width=32), st.integers(2, 8))
def test_a_range_from_zero_never_exceeds_its_upper_end(high, bits):
    encoding = activation_encoding(0.0, high, bits)
    largest = round_trip(np.array([np.finfo(np.float32).max], np.float32), encoding)
    assert high * (1 - 1e-6) <= float(largest[0]) <= high


@given(st.floats(-1e20, 1e20), st.floats(-1e20, 1e20), st.integers(2, 8))
def test_zero_is_always_a_value(one, other, bits):
    encoding = activation_encoding(min(one, other), max(one, other), bits)
    assert not encoding.signed
    assert round_trip(np.zeros(1, np.float32), encoding)[0] == 0.0


@given(st.floats(-1e6, -1e-6), st.floats(1e-6, 1e6), st.integers(2, 8))
def test_the_range_is_covered_to_a_step(low, high, bits):
    encoding = activation_encoding(low, high, bits)
    ends = round_trip(np.array([low, high], np.float32), encoding)
    assert np.abs(ends - [low, high]).max() <= 1.001 * float(encoding.scale)


def test_minmax_is_what_was_seen_and_zero():
    assert activation_range(histogram_of([1.5, 4.0]), 8, "minmax") == (0.0, 4.0)
    assert activation_range(histogram_of([-1.5, 4.0]), 8, "minmax") == (-1.5, 4.0)
    assert activation_range(histogram_of([-4.0, -1.5]), 8, "minmax") == (-4.0, 0.0)


def test_percentile_leaves_out_single_outliers_on_either_side():
    values = np.concatenate([rng.uniform(-1, 1, 100_000), [50.0, -90.0]])
    low, high = activation_range(histogram_of(values), 8, "percentile")
    assert -1.1 < low < -0.9
    assert 0.9 < high < 1.1


@pytest.mark.parametrize("method", ["mse", "minmax", "percentile"])
def test_constant_and_empty_streams_have_a_range(method):
    for values in ([0.0, 0.0], []):
        low, high = activation_range(histogram_of(values), 8, method)
        assert low <= 0.0 <= high
        assert low < high
    low, high = activation_range(histogram_of([3.0, 3.0, 3.0]), 8, method)
    assert low == 0.0
    assert high == pytest.approx(3.0, rel=0.1)


@pytest.mark.parametrize("value", [1e-42, -1e-42, 1e38, -3e38])
def test_extreme_ranges_give_a_usable_encoding(value):
    encoding = activation_encoding(min(value, 0.0), max(value, 0.0), 8)
    assert np.isfinite(encoding.scale)
    assert encoding.scale > 0


class TestRangeOfHardSigmoid:
    @pytest.mark.parametrize("slope", [(1 / 6, 0.5), (0.2, 0.5), (0.25, 0.25)])
    @pytest.mark.parametrize("ends", [(-6.1, 4.7), (-3.3, 12.0), (-40.0, 0.0)])
    def test_it_begins_and_ends_on_codes(self, ends, slope):
        alpha, beta = slope
        moved = range_of_hard_sigmoid(*ends, 8, *slope)
        encoding, before = activation_encoding(*moved, 8), activation_encoding(*ends, 8)
        assert encoding.zero_point == before.zero_point
        for end in (-beta / alpha, (1 - beta) / alpha):
            codes = end / float(encoding.scale)
            assert codes == pytest.approx(round(codes), abs=1e-4)
        assert float(encoding.scale) == pytest.approx(float(before.scale), rel=0.1)

    def test_a_range_that_nearly_reaches_is_widened(self):
        low, high = range_of_hard_sigmoid(-2.8, 5.0, 8, 1 / 6, 0.5)
        assert (low, high) == (pytest.approx(-3.0), pytest.approx(5.0, rel=0.01))

    @pytest.mark.parametrize("ends", [(-0.5, 1.0), (0.0, 2.0), (-1.0, 9.0)])
    def test_one_that_is_read_alone_reaches_in_any_case(self, ends):
        low, high = range_of_hard_sigmoid(*ends, 8, 0.2, 0.5, True)
        assert low == pytest.approx(-2.5) and high > 0.98 * min(ends[1], 2.5)
        assert range_of_hard_sigmoid(*ends, 4, 0.2, 0.5, True) == ends

    @pytest.mark.parametrize(
        ("ends", "bits", "slope"),
        [((-2.0, 5.0), 8, (1 / 6, 0.5)), ((0.0, 5.0), 8, (1 / 6, 0.5)), ((-10.0, 14.0), 3, (1 / 6, 0.5)),
         ((-6.0, 6.0), 8, (-1.0, 0.5)), ((-6.0, 6.0), 8, (1.0, 0.0))],
        ids=["short", "positive", "3 bits", "falling", "from 0"],
    )  # fmt: skip
    def test_others_stay(self, ends, bits, slope):
        assert range_of_hard_sigmoid(*ends, bits, *slope) == ends


class TestRangeOfShift:
    def seen(self, low, high):
        histogram = StreamingHistogram()
        histogram.update(np.linspace(low, high, 5000, dtype=np.float32))
        return histogram

    @pytest.mark.parametrize("shift", [-0.93, 0.31, 4.7])
    def test_it_becomes_a_whole_number_of_steps(self, shift):
        histogram = self.seen(shift - 0.4, shift + 5)
        ends = activation_range(histogram, 8)
        moved = range_of_shift(histogram, *ends, 8, shift)
        encoding = activation_encoding(*moved, 8)
        steps = shift / float(encoding.scale)
        assert steps == pytest.approx(round(steps), abs=1e-4) and round(steps)
        assert -encoding.zero_point * float(encoding.scale) == pytest.approx(ends[0], abs=0.51 * float(encoding.scale))
        values = np.linspace(shift - 0.4, shift + 5, 5000)
        assert mean_squared_error(values, *moved, 8) <= 1.3 * mean_squared_error(values, *ends, 8)

    @pytest.mark.parametrize(
        ("shift", "bits"), [(0.0, 8), (0.001, 8), (0.03, 8), (0.31, 3)], ids=["none", "tiny", "1.4 steps", "3 bits"]
    )
    def test_others_stay(self, shift, bits):
        assert range_of_shift(self.seen(-0.4, 5.0), -0.4, 5.0, bits, shift) == (-0.4, 5.0)

    def test_the_largest_numbers_are_not_cut_off(self):
        """5.9 steps: 6 of them are finer by .983, at 5.8 steps by .967, which the one largest number tells apart."""
        histogram = StreamingHistogram()
        histogram.update(np.append(np.linspace(-0.4, 1.0, 100_000), 5.0).astype(np.float32))
        for steps, most in ((5.9, 4.92), (5.8, 5.0)):
            assert range_of_shift(histogram, -0.4, 5.0, 8, steps * 5.4 / 255)[1] == pytest.approx(most, abs=0.01)

    def test_errors_that_matter_more_count_more(self):
        """5.75 steps: with 5 of them the shift itself is a code, and all else loses a third more."""
        shift = 5.75 * 5.4 / 255
        values = np.append(np.linspace(-0.4, 5.0, 5000), np.full(5000, shift)).astype(np.float32)
        histogram = StreamingHistogram()
        histogram.update(values)
        assert range_of_shift(histogram, -0.4, 5.0, 8, shift, "mse")[1] > 5.5
        histogram.weigh(values, np.where(values == np.float32(shift), 1e-6, 1.0).astype(np.float32))
        assert range_of_shift(histogram, -0.4, 5.0, 8, shift) == (-0.4, 5.0)
