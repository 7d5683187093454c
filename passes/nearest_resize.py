"""Repeats the pixels of quantized tensors by operators that move whole blocks."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.kernels import quantizer_of
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes
from amq_onnx.passes.place import is_carrier

# How output positions are laid over those of the input, and rounded, where k outputs in a row have one input for every
# whole k; the defaults of Resize come first.
_REPEATING = frozenset(
    {
        ("half_pixel", "round_prefer_floor"),
        ("half_pixel", "round_prefer_ceil"),
        ("pytorch_half_pixel", "round_prefer_floor"),
        ("pytorch_half_pixel", "round_prefer_ceil"),
        ("asymmetric", "floor"),
    }
)


# Blocks of fewer channels take as long as single numbers.
_CHANNELS = 4


class RepeatPixels(Pass):
    """Makes a nearest Resize of codes by whole numbers a Gather of columns and one of rows, channels last.

    Before:  codes [n, c, h, w] -> Resize(scales 1, 1, 2, 2) -> codes [n, c, 2h, 2w]
    After:   codes [n, c, h, w] -> Transpose [n, h, w, c] -> Gather(0 0 1 1 .., axis 2) -> Gather(0 0 1 1 .., axis 1)
               -> Transpose -> codes [n, c, 2h, 2w]

    The codes are the same. onnxruntime's integer convolutions are channels-last, and so it makes the Resize, one number
    at a time: 32 channels of 256x256 take 6,200 microseconds, the Gathers of blocks 350. The Transposes are those that
    it puts around convolutions anyway. Indices are computed when the model is loaded where sizes are known, else as it
    runs. Left alone: floats, which convolutions don't have channels-last; few channels; other scales, modes, roundings.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        add = NewNodes(graph, free_names(graph, f"{self.stem}n"))
        known: dict[tuple[int, int], gs.Variable] = {}

        changed = False
        for node in list(graph.nodes):
            factors = _factors(node)
            if factors is None:
                continue
            rank, codes = len(factors), node.inputs[0]
            shape = _shape(codes) or [None] * rank
            repeated = last = add("Transpose", [codes], codes.dtype, perm=[0, *range(2, rank), 1])
            sizes: gs.Variable | None = None
            for axis in range(rank - 1, 1, -1):
                size, factor = shape[axis], factors[axis]
                if factor == 1:
                    continue
                if isinstance(size, int):
                    if (size, factor) not in known:
                        known[size, factor] = _positions(add.scalar(size, np.int64), factor, add)
                    indices = known[size, factor]
                else:
                    sizes = sizes or add("Shape", [last], np.int64)
                    size_now = add("Gather", [sizes, add.scalar(axis - 1, np.int64)], np.int64)
                    indices = _positions(size_now, factor, add)
                repeated = add("Gather", [repeated, indices], codes.dtype, axis=axis - 1)
            node.op, node.attrs, node.inputs = "Transpose", {"perm": [0, rank - 1, *range(1, rank - 1)]}, [repeated]
            changed = True
        return changed


def _positions(size: gs.Tensor, factor: int, add: NewNodes) -> gs.Variable:
    """Each of `size` positions, as often as `factor` says."""
    return add.repeated(add("Mul", [size, add.scalar(factor, np.int64)], np.int64), factor, np.int64)


def _factors(node: gs.Node) -> list[int] | None:
    """By dimension, how often a Resize of codes repeats each position; None for other nodes, and where it does other
    things or what it does isn't known."""
    if node.op != "Resize" or not is_standard(node) or not is_carrier(node):
        return None
    attributes = node.attrs
    laid = attributes.get("coordinate_transformation_mode", "half_pixel")
    rule = laid, attributes.get("nearest_mode", "round_prefer_floor")
    shape = _shape(node.inputs[0])
    few = shape is not None and isinstance(shape[1], int) and shape[1] < _CHANNELS
    if rule not in _REPEATING or few or quantizer_of(node.inputs[0], is_carrier) is None:
        return None
    scales, sizes = ([*node.inputs[2:4], None, None])[:2]
    if isinstance(scales, gs.Constant) and scales.values.size:
        factors = scales.values
    elif isinstance(sizes, gs.Constant) and attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch":
        if shape is None or not all(isinstance(size, int) for size in shape[1:]):
            return None
        # A first dimension that isn't known is that of samples, which nothing repeats.
        factors = np.divide(sizes.values, [size if isinstance(size, int) else sizes.values[0] for size in shape])
    else:
        return None
    whole = [round(float(factor)) for factor in factors]
    if len(whole) < 3 or whole[:2] != [1, 1] or max(whole) == 1 or not np.array_equal(whole, factors):
        return None
    return whole


def _shape(codes: gs.Tensor) -> list[int | str | None] | None:
    """The shape of codes, as far as it's known: what they are the codes of has it."""
    made = quantizer_of(codes)
    return None if made is None or made.inputs[0].shape is None else list(made.inputs[0].shape)
