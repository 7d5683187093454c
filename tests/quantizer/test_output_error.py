"""What an error of weights does to outputs, against the outputs themselves."""

import numpy as np
import pytest

from amq_onnx.quantizer.affine import round_trip
from amq_onnx.quantizer.encoding import code_range
from amq_onnx.quantizer.output_error import OutputError
from amq_onnx.quantizer.weight_ranges import encoding_at, weight_encodings

rng = np.random.default_rng(3)


def inputs(groups, count, elements, mean=1.5):
    """Inputs that have much in common, as neighbouring pixels have: [groups, count, elements]."""
    mixing = rng.standard_normal((groups, elements, elements)) / np.sqrt(elements) + 0.5
    drawn = rng.standard_normal((groups, count, elements)) * np.geomspace(1, 0.05, elements)
    return (drawn @ mixing + mean).astype(np.float32)


def spectrum(seen, centred):
    seen = seen.astype(np.float64) - centred * seen.mean(1, dtype=np.float64, keepdims=True)
    return np.linalg.eigh(np.matmul(seen.transpose(0, 2, 1), seen) / seen.shape[1])


def output_errors(differences, seen, centred):
    """The mean squared (or, centred, the variance) of d'x over `seen`, of each channel."""
    products = np.einsum("gin,gcn->gci", seen, differences.reshape(len(seen), -1, seen.shape[2]), dtype=np.float64)
    return (products.var(2) if centred else np.square(products).mean(2)).reshape(-1)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_error_is_that_of_the_outputs_and_the_ridge(groups, centred):
    seen, differences = inputs(groups, 200, 10), rng.standard_normal((6, 10)).astype(np.float32)
    exact = output_errors(differences, seen, centred)
    squares = np.square(differences).reshape(groups, -1, 10).sum(2)
    # Moments leave out directions that hold no more than 0.2 % of the inputs' mean square.
    for error, left_out in (
        (OutputError.from_rows(seen, centred), 1e-5),
        (OutputError.from_spectrum(*spectrum(seen, centred)), 0.0021),
    ):
        found = error.product(differences, differences) - (squares * error.ridge[:, None]).reshape(-1)
        total = np.square(seen - centred * seen.mean(1, keepdims=True)).sum((1, 2)) / seen.shape[1]
        np.testing.assert_allclose(error.ridge, 0.05 * total / 10, rtol=1e-3)
        assert (np.abs(found - exact) <= left_out * (squares * total[:, None]).reshape(-1)).all()


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("elements", [10, 150])  # few rows of the factor, and more than are looked at first
def test_errors_below_the_limits_are_exact_and_no_other_is_called_below(groups, elements):
    seen, differences = inputs(groups, 400, elements), rng.standard_normal((12, elements)).astype(np.float32)
    error = OutputError.from_spectrum(*spectrum(seen, centred=False))
    exact = error.product(differences, differences)
    limits = exact * np.tile([0.3, 0.99, 1.01, 5.0], 3)
    found = error.below(differences, limits)
    below = exact < limits
    assert 0 < below.sum() < 12
    np.testing.assert_allclose(found[below], exact[below], rtol=1e-4)
    assert (found[~below] >= limits[~below]).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
@pytest.mark.parametrize("groups", [1, 8])
def test_outputs_err_less_than_with_the_scale_of_least_squared_error_and_hardly_more_than_with_the_best(groups, bits):
    weight, seen = rng.standard_normal((8, 24)).astype(np.float32), inputs(groups, 400, 24)
    error = OutputError.from_rows(seen, centred=False)
    found = weight_encodings(weight, 0, [bits], output_error=error)
    plain = weight_encodings(weight, 0, [bits])

    def errors(rounded):
        return error.product(rounded - weight, rounded - weight)

    ours, theirs = errors(round_trip(weight, found.encodings[bits])), errors(round_trip(weight, plain.encodings[bits]))
    assert (ours <= theirs * 1.0001).all()
    assert ours.sum() < 0.95 * theirs.sum()
    np.testing.assert_allclose(
        found.errors[bits], np.square(round_trip(weight, found.encodings[bits]) - weight).sum(1), rtol=1e-4
    )
    low, high = code_range(bits, signed=True)
    least = np.full(8, np.inf)
    for factor in np.geomspace(1.25, 0.1, 2000):
        scale = (np.abs(weight).max(1, keepdims=True) / max(high, 1) * factor).astype(np.float32)
        least = np.minimum(least, errors(np.clip(np.rint(weight / scale), low, high) * scale))
    assert np.median(ours / least) < 1.25
    alone = output_errors(round_trip(weight, found.encodings[bits]) - weight, seen, False)
    assert alone.sum() < output_errors(round_trip(weight, plain.encodings[bits]) - weight, seen, False).sum()


def test_weights_that_meet_zeros_only_and_wide_ones_keep_their_scales():
    weight, nothing = rng.standard_normal((4, 12)).astype(np.float32), np.zeros((1, 5, 12), np.float32)
    plain = weight_encodings(weight, 0, [3, 8])
    silent = weight_encodings(weight, 0, [3, 8], output_error=OutputError.from_rows(nothing, centred=False))
    spoken = weight_encodings(weight, 0, [3, 8], output_error=OutputError.from_rows(inputs(1, 90, 12), centred=False))
    minmax = weight_encodings(weight, 0, [3], "minmax")
    error = OutputError.from_rows(inputs(1, 90, 12), centred=False)
    for bits in (3, 8):
        np.testing.assert_array_equal(plain.encodings[bits].scale, silent.encodings[bits].scale)
    np.testing.assert_array_equal(plain.encodings[8].scale, spoken.encodings[8].scale)
    assert (plain.encodings[3].scale != spoken.encodings[3].scale).any()
    np.testing.assert_array_equal(
        weight_encodings(weight, 0, [3], "minmax", output_error=error).encodings[3].scale, minmax.encodings[3].scale
    )


@pytest.mark.parametrize("groups", [1, 30, 300])
def test_chunks_and_threads_do_not_change_the_result(groups):
    weight = rng.standard_normal((300, 700)).astype(np.float32)  # several chunks of channels
    error = OutputError.from_rows(rng.standard_normal((groups, 6, 700)).astype(np.float32), centred=False)
    whole = weight_encodings(weight, 0, [2], output_error=error)
    one = weight_encodings(weight, 0, [2], threads=1, output_error=error)
    np.testing.assert_array_equal(whole.encodings[2].scale, one.encodings[2].scale)


def test_known_scales_are_taken_for_the_channels_of_their_width_and_must_fit():
    weight = rng.standard_normal((4, 12)).astype(np.float32)
    known = {3: np.float32([0.1, 0.2, 0.3, 0.4])}
    np.testing.assert_array_equal(encoding_at(weight, 0, 3, known=known).scale, known[3])
    mixed = encoding_at(weight, 0, (3, 5, 5, 3), known=known)
    np.testing.assert_array_equal(mixed.scale[[0, 3]], known[3][[0, 3]])
    np.testing.assert_array_equal(mixed.scale[1:3], encoding_at(weight[1:3], 0, 5).scale)
    for axis in (1, None):
        with pytest.raises(ValueError, match="4 scales for"):
            encoding_at(weight, axis, 3, known=known)
