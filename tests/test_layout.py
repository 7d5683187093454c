"""Tensors whose pixels lie side by side give what others give."""

import pytest
import torch

from amq_onnx.layout import channels_last, inner, mean_of_samples, ordered_alike

X, Y = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)


@pytest.mark.parametrize("x", [X, channels_last(X)], ids=["channels", "pixels"])
@pytest.mark.parametrize("y", [Y, channels_last(Y)], ids=["channels", "pixels"])
def test_sums_of_two_tensors(x, y):
    torch.testing.assert_close(inner(x, y), (X * Y).sum())
    first, second = ordered_alike(x, y)
    torch.testing.assert_close((first - second).sum(-1).sum(), (X - Y).sum())
    assert first.shape == second.shape
    assert first.is_contiguous()


@pytest.mark.parametrize("x", [X, channels_last(X), X[0], X[:, :, 0, 0]])
def test_means_of_samples(x):
    torch.testing.assert_close(mean_of_samples(x), x.mean(0, keepdim=True))


def test_channels_last_copies_once():
    moved = channels_last(X)
    torch.testing.assert_close(moved, X)
    assert moved.stride() == (60, 1, 15, 3)
    assert channels_last(moved).data_ptr() == moved.data_ptr()
