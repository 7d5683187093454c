"""Fourier transforms, windows and mel filters."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.shape import scalar
from amq_onnx.executor.registry import operator


def _signal(x: Tensor) -> Tensor:
    """x [*, 1] as real, [*, 2] as complex numbers [*]."""
    return x[..., 0] if x.shape[-1] == 1 else torch.complex(x[..., 0], x[..., 1])


def _spectrum(x: Tensor, length: int | None, axis: int, onesided: bool) -> Tensor:
    """The transform of a real or complex signal along one axis, as [*, 2]."""
    if onesided and not x.is_complex():
        return torch.view_as_real(torch.fft.rfft(x, length, axis))
    y = torch.fft.fft(x, length, axis)
    return torch.view_as_real(y.narrow(axis, 0, y.shape[axis] // 2 + 1) if onesided else y)


@operator("DFT", host=(1, 2))
def dft(node: NodeContext, x: Tensor, length: Any = None, axis: Any = None) -> Tensor:
    """x [*, 1 or 2] -> [*, 2], or [*, 1] for the inverse of a one-sided spectrum. Opset 20 has the axis as input."""
    if axis is None:
        axis = node.integer("axis", 1) if node.opset < 20 else -2
    place = scalar(axis) % x.dim()
    wanted = None if length is None else int(scalar(length))
    onesided = bool(node.integer("onesided"))
    if not node.integer("inverse"):
        return _spectrum(_signal(x), wanted, place, onesided)
    if onesided:
        y: Tensor = torch.fft.irfft(_signal(x), wanted, place)
        return y.unsqueeze(-1)
    return torch.view_as_real(torch.fft.ifft(_signal(x), wanted, place))


@operator("STFT", host=(1, 3))
def stft(node: NodeContext, x: Tensor, step: Any, window: Tensor | None = None, length: Any = None) -> Tensor:
    """x [N, L, 1 or 2] -> [N, frames, bins, 2], of whole frames only."""
    size = int(scalar(length)) if window is None else window.shape[0]
    frames = _signal(x).unfold(1, size, int(scalar(step)))
    return _spectrum(frames if window is None else frames * window, None, 2, bool(node.integer("onesided", 1)))


def _window(node: NodeContext, size: Any, *cosines: float) -> Tensor:
    """cosines[0] - cosines[1] cos(2 pi n / N) + cosines[2] cos(4 pi n / N) ..., N one less where not periodic."""
    count = int(scalar(size))
    period = max(count if node.integer("periodic", 1) else count - 1, 1)
    phase = torch.arange(count, dtype=torch.float64, device=node.device) * (2 * math.pi / period)
    terms = [(-1) ** i * factor * torch.cos(i * phase) for i, factor in enumerate(cosines)]
    return torch.stack(terms).sum(0).to(node.held(node.integer("output_datatype", 1)))


@operator("HannWindow", host=(0,))
def hann_window(node: NodeContext, size: Any) -> Tensor:
    """[size]."""
    return _window(node, size, 0.5, 0.5)


@operator("HammingWindow", host=(0,))
def hamming_window(node: NodeContext, size: Any) -> Tensor:
    """[size]; ONNX takes 25/46 where others take 0.54."""
    return _window(node, size, 25 / 46, 21 / 46)


@operator("BlackmanWindow", host=(0,))
def blackman_window(node: NodeContext, size: Any) -> Tensor:
    """[size]."""
    return _window(node, size, 0.42, 0.5, 0.08)


@operator("MelWeightMatrix", host=(0, 1, 2, 3, 4))
def mel_weight_matrix(node: NodeContext, bands: Any, length: Any, rate: Any, low: Any, high: Any) -> Tensor:
    """Triangular filters [length // 2 + 1, bands], equally wide in mel, their corners at whole bins.

    As ONNX defines it, the corners are (high - low) / (bands + 2) mel apart, so the last stays below `high`.
    """
    count, size = int(scalar(bands)), int(scalar(length))
    lowest, highest = (2595 * math.log10(1 + float(scalar(edge)) / 700) for edge in (low, high))
    mels = lowest + torch.arange(count + 2, dtype=torch.float64) * ((highest - lowest) / (count + 2))
    corners = torch.floor((size + 1) * (700 * (torch.pow(10.0, mels / 2595) - 1)) / float(scalar(rate)))
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    bins = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
    rising = torch.where(left == centre, 1.0, (bins - left) / torch.clamp(centre - left, min=1))
    falling = (right - bins) / torch.clamp(right - centre, min=1)
    weights = torch.where(bins < centre, rising, falling)
    weights = torch.where((bins == centre) & (right == centre), 1.0, weights)
    weights = torch.where((bins < left) | (bins > torch.maximum(right, centre)), 0.0, weights)
    return weights.to(device=node.device, dtype=node.held(node.integer("output_datatype", 1)))
