"""Codes of any width in bytes, and the nodes that unpack them: see amq_onnx.targets.onnxruntime for the form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from amq_onnx.quantizer.encoding import code_range
from amq_onnx.recipe import Codes, ConstantSpec, NodeSpec, Recipe, fixed_constant

_PIECES = {1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1)}


@dataclass(frozen=True)
class Layout:
    """How codes of `bits` bits lie in bytes: pieces of these widths, the first one's bytes lead an index."""

    bits: int

    @property
    def pieces(self) -> tuple[int, ...]:
        """Widths of the pieces, falling."""
        return _PIECES[self.bits]

    @property
    def codes_per_index(self) -> int:
        """How many codes share an index."""
        return 8 // self.pieces[0]

    @property
    def index_bits(self) -> int:
        """Bits of an index."""
        return self.codes_per_index * self.bits

    @property
    def codes_per_block(self) -> int:
        """Codes after which every piece ends on a whole byte."""
        return 8 // self.pieces[-1]

    def field_shift(self, piece: int) -> int:
        """Where the piece's field starts in an index."""
        return self.codes_per_index * sum(self.pieces[:piece])

    def value_shift(self, piece: int) -> int:
        """Where the piece's bits stand in a code."""
        return sum(self.pieces[:piece])


class Unpacking:
    """Collects what stores and unpacks one weight."""

    def __init__(self, stem: str) -> None:
        self.stem = stem
        self.constants: list[ConstantSpec] = []
        self.nodes: list[NodeSpec] = []
        self.shared: list[str] = []
        self.vectors: set[str] = set()

    def use(self, key: str) -> str:
        """The name of something shared."""
        self.shared.append(key)
        return f"{self.stem}{key}"

    def node(
        self,
        op_type: str,
        inputs: tuple[str, ...],
        output: str,
        attributes: Mapping[str, int | list[int]] | None = None,
    ) -> str:
        """Add a node; returns `output`."""
        self.nodes.append(NodeSpec(op_type, inputs, output, attributes or {}))
        return output

    def recipe(self, result: str, zero_points: Literal["kept", "left out", "left out for Conv"]) -> Recipe:
        """All that was collected, as the recipe of `result`."""
        return Recipe(result, tuple(self.constants), tuple(self.nodes), tuple(dict.fromkeys(self.shared)), zero_points)

    def add(self, name: str, count: int, bits: int, pick: Channels | None = None) -> str:
        """Store `count` codes, of the channels that `pick` takes, in names that start with `name`.

        Returns the tensor of the codes, [count] or [indices, codes of an index].
        """
        if bits == 8:
            self.constants.append(ConstantSpec(name, np.int8, (count,), _Plain(pick)))
            self.vectors.add(name)
            return name
        layout = Layout(bits)
        padded = -(-count // layout.codes_per_block) * layout.codes_per_block
        table = self.use(f"t{bits}")
        index = ""
        for piece, width in enumerate(layout.pieces):
            values = _PieceValues(layout, piece, padded, pick)
            stored = ConstantSpec(f"{name}{'klm'[piece]}", np.uint8, (padded * width // 8,), values)
            self.constants.append(stored)
            indices = self.node("Cast", (stored.name,), f"{stored.name}i", {"to": 6})
            if piece == 0:
                index = indices
                continue
            spread = self.use(spread_key(layout, piece))
            fields = self.node("Gather", (spread, indices), f"{stored.name}g")
            fields = self.node("Reshape", (fields, self.use("flat")), f"{stored.name}f")
            index = self.node("Add", (index, fields), f"{stored.name}a")
        codes = self.node("Gather", (table, index), f"{name}t")
        if padded == count:
            return codes
        codes = self.flat(codes, f"{name}u")
        self.constants.append(fixed_constant(f"{name}n", np.array([count], np.int64)))
        codes = self.node("Slice", (codes, self.use("start"), f"{name}n"), f"{name}v")
        self.vectors.add(codes)
        return codes

    def flat(self, codes: str, name: str | None = None) -> str:
        """`codes` as a vector."""
        if codes in self.vectors:
            return codes
        return self.node("Reshape", (codes, self.use("flat")), name or f"{codes}u")

    def order(self, name: str, channels: list[int]) -> str:
        """The indices that bring channels stored in this order into their own, as int32; in the fewest bytes."""
        places = np.argsort(np.array(channels))
        small = places.astype(np.uint8 if len(channels) <= 256 else np.uint16)
        wide = fixed_constant(name, places.astype(np.int32))
        narrow = fixed_constant(name, small)
        cast = NodeSpec("Cast", (name,), f"{name}i", {"to": 6})
        if Recipe("", (wide,)).file_bytes() <= Recipe("", (narrow,), (cast,)).file_bytes():
            self.constants.append(wide)
            return name
        self.constants.append(narrow)
        self.nodes.append(cast)
        return cast.output


@dataclass(frozen=True)
class Channels:
    """Takes the codes of some channels, channel by channel."""

    axis: int
    channels: tuple[int, ...]

    def __call__(self, codes: Codes) -> Codes:
        """Codes of the channels, [channels, ...]."""
        return np.moveaxis(codes, self.axis, 0)[list(self.channels)]


@dataclass(frozen=True)
class _Plain:
    """Codes as int8, one after another."""

    pick: Channels | None

    def __call__(self, codes: Codes) -> NDArray[np.int8]:
        picked = codes if self.pick is None else self.pick(codes)
        return picked.reshape(-1).astype(np.int8)


@dataclass(frozen=True)
class _PieceValues:
    """Packs one piece of every code into bytes, lowest field first."""

    layout: Layout
    piece: int
    padded: int
    pick: Channels | None = None

    def __call__(self, codes: Codes) -> NDArray[np.uint8]:
        if self.pick is not None:
            codes = self.pick(codes)
        low, _ = code_range(self.layout.bits, signed=True)
        width = self.layout.pieces[self.piece]
        unsigned = np.zeros(self.padded, np.uint8)
        unsigned[: codes.size] = codes.reshape(-1) - low
        fields = (unsigned >> self.layout.value_shift(self.piece)) & (2**width - 1)
        per_byte = 8 // width
        shifts = np.arange(per_byte, dtype=np.uint8) * width
        packed = np.bitwise_or.reduce(fields.reshape(-1, per_byte) << shifts, axis=1)
        return np.asarray(packed, np.uint8)


def spread_key(layout: Layout, piece: int) -> str:
    """The key of the shared table that spreads a piece's bytes to one number an index."""
    return f"s{layout.pieces[piece] * layout.codes_per_index}x{layout.field_shift(piece)}"
