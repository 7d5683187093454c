"""Spectra of weights against the exact ones of small blocks."""

import numpy as np
import pytest
import torch
from test_traces import LOSSES, SAMPLES, WEIGHTS, Setting
from torch.func import hessian, jacrev

from amq_onnx.errors import DataError
from amq_onnx.quantizer.affine import round_trip
from amq_onnx.spectra import measure_activation_eigenvalues, measure_spectra


def measured(setting, labels=None, **options):
    settings = {"count": 4, "relative_error": 1e-6, "batch_size": 2} | options
    return measure_spectra(
        setting.executor, setting.data(labels), list(WEIGHTS), setting.heads, [setting.loss], **settings
    )


def exact(setting, name, method):
    """Eigenvalues of a weight's block for the mean loss."""
    point = setting.point(name)
    target = torch.from_numpy(setting.labels)

    def scores(flat):
        return setting.scores(name, flat.reshape(point.shape))

    if method == "hessian":
        block = hessian(lambda p: setting.loss.value(scores(p), target).sum())(point.reshape(-1))
    else:
        at = scores(point.reshape(-1))
        jacobian = jacrev(lambda p: scores(p).reshape(-1))(point.reshape(-1))
        inner = hessian(lambda z: setting.loss.value(z.reshape(at.shape), target).sum())(at.reshape(-1))
        block = jacobian.T @ inner @ jacobian
    return torch.linalg.eigvalsh(block).numpy() / SAMPLES


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("method", ["gauss-newton", "hessian"])
def test_spectra_are_the_exact_ones(method, loss):
    setting = Setting(loss)
    found = measured(setting, setting.labels, method=method)
    for name, spectrum in found.items():
        eigenvalues = exact(setting, name, method)
        assert spectrum.size == len(eigenvalues) and spectrum.converged
        top = eigenvalues[np.argsort(-np.abs(eigenvalues))]
        scale = abs(top[0])
        for value, error in zip(spectrum.values, spectrum.errors, strict=True):
            assert np.abs(top - value).min() <= error + 1e-8 * scale
        assert spectrum.values[0] == pytest.approx(top[0], rel=1e-5)
        # One start gives the trace within the deviation of v'Hv / v'v.
        assert abs(spectrum.trace - eigenvalues.sum()) < 3 * np.sqrt(2 * np.square(eigenvalues).sum())


def test_the_batch_size_changes_nothing_and_the_seed_the_start_alone():
    setting = Setting()
    one, other = measured(setting, batch_size=5), measured(setting, batch_size=1, seed=7)
    for name, spectrum in one.items():
        np.testing.assert_allclose(other[name].values[0], spectrum.values[0], rtol=1e-5)
        assert not np.array_equal(other[name].points, spectrum.points)
        np.testing.assert_array_equal(measured(setting, batch_size=5)[name].points, spectrum.points)


def test_the_hessian_needs_labels():
    with pytest.raises(DataError, match="labels"):
        measured(Setting(), method="hessian")


@pytest.mark.parametrize("loss", LOSSES)
def test_eigenvalues_of_activations_are_those_of_each_samples_block(loss):
    setting = Setting(loss)
    found = measure_activation_eigenvalues(
        setting.executor, setting.data(), setting.encodings, setting.heads, [setting.loss], batch_size=2
    )
    for name, encodings in setting.encodings.items():
        values = setting.values[name]
        point = setting.point(name)
        at = setting.scores(name, point)
        jacobian = jacrev(lambda p, name=name: setting.scores(name, p))(point)
        target = torch.from_numpy(setting.labels)
        curvature = hessian(lambda z, target=target: setting.loss.value(z, target).sum())(at)
        tops = [
            float(torch.linalg.eigvalsh(own.T @ curvature[n, :, n] @ own)[-1])
            for n in range(SAMPLES)
            for own in [jacobian[n][:, n]]
        ]
        # Two eigenvalues close to each other keep the iterations from the larger.
        np.testing.assert_allclose(found[name].values, tops, rtol=0.1)
        assert found[name].elements == values.shape[1]
        for bits, encoding in encodings.items():
            errors = np.square(round_trip(values, encoding).astype(np.float64) - values).sum(1)
            assert found[name].perturbation[bits] == pytest.approx((np.array(tops) * errors).mean(), rel=0.1)
