"""What a target says: which widths a file for it can have, how each is written, what each costs in bytes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np

from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.recipe import NodeSpec, Recipe, fixed_constant


class Target(ABC):
    """Recipes and byte counts of one target.

    stem: a short prefix that no name in the model starts with; every name made here starts with it.
    """

    name: ClassVar[str]
    weight_widths: ClassVar[Sequence[int]]
    activation_widths: ClassVar[Sequence[int]]
    minimum_opset: ClassVar[int] = 13
    """QuantizeLinear has an axis from there on."""
    mixes: ClassVar[bool] = False
    """The channels of one weight may have widths of their own."""

    for_onnxruntime: ClassVar[bool]
    """The graph may be shaped for what onnxruntime folds at load and has kernels for. Weights that no integer kernel
    reads are dequantized by operators that it folds, weights that others only move (Gather, Transpose) are moved as
    codes, narrow groups of convolutions are joined, hard sigmoids are computed on codes, and quantizers take over what
    is multiplied and added in front of them."""

    speed: ClassVar[Sequence[str]]
    """What a user should know of the speed of such files, a sentence each."""

    def __init__(self, stem: str) -> None:
        self.stem = stem

    @abstractmethod
    def weight(self, key: str, shape: tuple[int, ...], bits: int, integer: bool = True) -> Recipe:
        """The recipe of a weight of `shape` at `bits` bits; `key` tells its names from other sites'.

        integer: whether an integer kernel reads it.
        """

    def mixed_weight(
        self, key: str, shape: tuple[int, ...], axis: int, widths: Sequence[int], integer: bool = True
    ) -> Recipe:
        """See `weight`: with a width for each channel, along `axis`. Raises ValueError where `mixes` is False."""
        raise ValueError(f"the target '{self.name}' gives all channels of a weight one width")

    def shared(self, key: str) -> Recipe:
        """The recipe of a constant or table that several sites use, by the keys that Recipe.shared names."""
        raise KeyError(key)

    def opset(self, recipes: Iterable[Recipe], activations: Iterable[Encoding]) -> int:
        """The least operator set in which a file with these weights and activations can be written."""
        return self.minimum_opset

    def activation_constants(self, encoding: Encoding) -> tuple[str, ...]:
        """Keys of the shared uint8 constants that bound an activation's codes: none at 8 bits."""
        if encoding.bits == 8:
            return ()
        low, high = encoding.code_range
        return f"c{low}", f"c{high}"

    def activation_bytes(self, key: str, encoding: Encoding) -> int:
        """Bytes that depend on an activation's encoding: its zero point, and the Clip below 8 bits."""
        size = 0
        if encoding.zero_point:
            zero = fixed_constant(f"{self.stem}{key}z", np.array(encoding.zero_point, np.uint8))
            # QuantizeLinear and DequantizeLinear name it in place of the shared zero, "c0".
            size += Recipe("", (zero,)).file_bytes() + 2 * (len(f"{key}z") - len("c0"))
        if encoding.bits < 8:
            bounds = tuple(f"{self.stem}{bound}" for bound in self.activation_constants(encoding))
            clip = NodeSpec("Clip", (f"{self.stem}{key}q", *bounds), f"{self.stem}{key}c")
            size += Recipe("", (), (clip,)).file_bytes()
        return size

    def weight_bytes(self, key: str, recipe: Recipe, scales: tuple[int, ...], *, conv: bool = False) -> int:
        """Bytes that depend on a weight's width: how its codes are stored, and its zero points.

        recipe: the weight's. scales: the shape of its scales. conv: only Conv nodes read it.
        """
        size = recipe.file_bytes()
        if recipe.zero_points == "kept" or (recipe.zero_points == "left out for Conv" and not conv):
            zeros = fixed_constant(f"{self.stem}{key}z", np.zeros(scales, np.int8))
            size += Recipe("", (zeros,)).file_bytes() + 2 + len(zeros.name)
        return size

    def closure(self, keys: Iterable[str]) -> frozenset[str]:
        """`keys` of shared recipes and all that those need in turn."""
        found: set[str] = set()
        waiting = list(keys)
        while waiting:
            key = waiting.pop()
            if key not in found:
                found.add(key)
                waiting.extend(self.shared(key).shared)
        return frozenset(found)
