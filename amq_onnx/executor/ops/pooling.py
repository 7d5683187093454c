"""Pooling over windows and over all positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.ops.windows import resolved_pads, symmetric, torch_pads
from amq_onnx.executor.registry import operator

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class _Window:
    """The geometry of a pooling node for one input; `tail` is what ceil_mode adds at the end of each axis."""

    def __init__(self, node: NodeContext, sizes: Sequence[int]) -> None:
        self.kernel = node.integers("kernel_shape") or []
        rank = len(self.kernel)
        self.strides = node.integers("strides") or [1] * rank
        self.dilations = node.integers("dilations") or [1] * rank
        self.pads = resolved_pads(node, sizes, self.kernel, self.strides, self.dilations)
        self.tail = [0] * rank
        if node.integer("ceil_mode") and node.text("auto_pad", "NOTSET") == "NOTSET":
            self.tail = [self._tail(i, sizes[i], self.pads[i], self.pads[rank + i]) for i in range(rank)]

    def _tail(self, i: int, size: int, begin: int, end: int) -> int:
        reach = (self.kernel[i] - 1) * self.dilations[i] + 1
        steps = -(-(size + begin + end - reach) // self.strides[i])
        if steps * self.strides[i] >= size + begin:  # a window that starts in the padding is not taken
            steps -= 1
        return max(steps * self.strides[i] + reach - (size + begin + end), 0)

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def plain(self) -> bool:
        """Whether torch's own padding does: symmetric, at most half a kernel, nothing added by ceil_mode."""
        half = all(2 * pad <= k for pad, k in zip(self.pads, self.kernel, strict=False))
        return symmetric(self.pads) and half and not any(self.tail)

    def all_pads(self) -> list[int]:
        ends = [pad + tail for pad, tail in zip(self.pads[self.rank :], self.tail, strict=True)]
        return self.pads[: self.rank] + ends


@operator("MaxPool", codes=True)
def max_pool(node: NodeContext, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
    """x [N, C, *spatial] -> the maxima, and their flat indices in x where the node asks for them."""
    window = _Window(node, x.shape[2:])
    whole = x.dtype
    if not x.is_floating_point():
        x = x.to(node.dtype)
    padding, values = window.pads[: window.rank], x
    if not window.plain:
        values, padding = F.pad(x, torch_pads(window.all_pads()), value=float("-inf")), [0] * window.rank
    pool = _MAX[window.rank]
    if len(node.outputs) < 2 or not node.outputs[1]:
        return pool(values, window.kernel, window.strides, padding, window.dilations).to(whole)
    largest, places = pool(values, window.kernel, window.strides, padding, window.dilations, return_indices=True)
    return largest.to(whole), _flat_indices(node, x.shape, values.shape, places, window)


def _flat_indices(
    node: NodeContext, shape: Sequence[int], padded: Sequence[int], places: Tensor, window: _Window
) -> Tensor:
    """torch counts within one padded plane; ONNX counts within all of x."""
    coordinates = []
    for axis in reversed(range(window.rank)):
        coordinate = places % padded[2 + axis]
        places = places // padded[2 + axis]
        coordinates.append(coordinate - (0 if window.plain else window.pads[axis]))
    flat = torch.zeros_like(places)
    step = 1
    sizes = list(reversed(shape[2:]))
    if node.integer("storage_order"):
        coordinates, sizes = coordinates[::-1], sizes[::-1]
    for coordinate, size in zip(coordinates, sizes, strict=True):
        flat = flat + coordinate * step
        step *= size
    planes = torch.arange(shape[0] * shape[1], device=places.device) * prod(shape[2:])
    return flat + planes.reshape([shape[0], shape[1]] + [1] * window.rank)


@operator("MaxUnpool", host=(2,))
def max_unpool(node: NodeContext, x: Tensor, places: Tensor, sizes: list[int] | None = None) -> Tensor:
    """x [N, C, *pooled] at its flat places in zeros of the size that MaxPool would have had, or larger ones."""
    kernel = node.integers("kernel_shape") or []
    rank = len(kernel)
    strides, pads = node.integers("strides") or [1] * rank, node.integers("pads") or [0] * (2 * rank)
    spatial = [(x.shape[2 + i] - 1) * strides[i] + kernel[i] - pads[i] - pads[rank + i] for i in range(rank)]
    flat = torch.zeros(prod([*x.shape[:2], *spatial]), dtype=x.dtype, device=x.device)
    y = flat.scatter(0, places.flatten(), x.flatten()).reshape(*x.shape[:2], *spatial)
    if sizes is None:
        return y
    return F.pad(y, torch_pads([0] * rank + [size - n for size, n in zip(sizes[2:], spatial, strict=True)]))


@operator("AveragePool")
def average_pool(node: NodeContext, x: Tensor) -> Tensor:
    """x [N, C, *spatial]; what ceil_mode adds never counts, the pads do if count_include_pad says so."""
    window = _Window(node, x.shape[2:])
    counted = bool(node.integer("count_include_pad"))
    if window.plain and set(window.dilations) <= {1}:
        return _AVERAGE[window.rank](
            x, window.kernel, window.strides, window.pads[: window.rank], False, count_include_pad=counted
        )
    ones = torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype, device=x.device)
    if counted:
        ones = F.pad(ones, torch_pads(window.pads), value=1.0)
        ones = F.pad(ones, torch_pads([0] * window.rank + window.tail))
    else:
        ones = F.pad(ones, torch_pads(window.all_pads()))
    return _window_sum(F.pad(x, torch_pads(window.all_pads())), window) / _window_sum(ones, window)


def _window_sum(x: Tensor, window: _Window) -> Tensor:
    """The sum over each window of x [N, C, *padded]."""
    kernel = torch.ones([1, 1, *window.kernel], dtype=x.dtype, device=x.device)
    flat = x.reshape(-1, 1, *x.shape[2:])
    summed = _CONV[window.rank](flat, kernel, None, window.strides, 0, window.dilations)
    return summed.reshape(*x.shape[:2], *summed.shape[2:])


@operator("LpPool")
def lp_pool(node: NodeContext, x: Tensor) -> Tensor:
    """The p-norm over each window of x [N, C, *spatial]."""
    window = _Window(node, x.shape[2:])
    p = node.integer("p", 2)
    return _window_sum(F.pad(x, torch_pads(window.all_pads())).abs() ** p, window) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(node: NodeContext, x: Tensor) -> Tensor:
    """The mean over all spatial axes of x [N, C, *spatial], kept as ones."""
    return torch.mean(x, dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(node: NodeContext, x: Tensor) -> Tensor:
    """The maximum over all spatial axes of x [N, C, *spatial], kept as ones."""
    return torch.amax(x, dim=tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalLpPool")
def global_lp_pool(node: NodeContext, x: Tensor) -> Tensor:
    """The p-norm over all spatial axes of x [N, C, *spatial], kept as ones."""
    p = node.integer("p", 2)
    return torch.sum(x.abs() ** p, dim=tuple(range(2, x.dim())), keepdim=True) ** (1 / p)
