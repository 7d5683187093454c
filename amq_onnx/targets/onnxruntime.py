"""onnxruntime: every width of 1 to 8 bits at its exact size, on the integer kernels of old and new versions.

Weights. onnxruntime folds what is computed from constants when it loads a model, before it fuses
DequantizeLinear -> Conv -> QuantizeLinear into QLinearConv, whose weights are int8. So a weight of b < 8 bits
is stored as packed bytes and a Gather looks the int8 codes up in a table:

    uint8 bytes -> Cast(int32) -> Gather(table [2^k, g] of int8) -> Reshape -> int8 weight

A table row holds the g codes that share an index of k = b * g bits. Where k is 8 (b = 1, 2, 4) an index is one
byte. Other widths split each code into pieces of 4, 2 and 1 bits, stored apart; the bytes of the smaller
pieces are spread by tables of their own to one number an index and added:

    b = 3: 4 codes an index = one byte of 2-bit pieces + one nibble of 1-bit pieces
    b = 5: 2 codes an index = one byte of 4-bit pieces + two bits of 1-bit pieces
    b = 6: 2 codes an index = one byte of 4-bit pieces + one nibble of 2-bit pieces
    b = 7: 2 codes an index = one byte of 4-bit + one nibble of 2-bit + two bits of 1-bit pieces

Where the channels of a weight have different widths, those of one width are packed together, unpacked as above, put one
after another, and brought into their order:

    codes of 3 bits, codes of 5 bits, ... -> Concat -> Reshape(channels first) -> Gather(order) -> [Transpose]

Tables are computed in the graph from Range by integer Div and Mod: some 300 bytes a width, shared by all sites
of that width. Everything is opset 13 or older. The work at load is done on int32 indices, fewer than there are
weights, not on int32 weights: faster and leaner than shifting bit planes (measured, docs/packing.md).

Activations. uint8 for every width; below 8 bits a Clip to [0, 2^b - 1] between QuantizeLinear and
DequantizeLinear narrows it, since native 4-bit activations fall off the integer kernels or don't load.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amq_onnx.quantizer.encoding import code_range
from amq_onnx.recipe import ConstantSpec, NodeSpec, Recipe, fixed_constant
from amq_onnx.targets.packing import Channels, Layout, Unpacking
from amq_onnx.targets.target import Target


class OnnxRuntimeTarget(Target):
    """The `onnxruntime` target.

    Zero points are left out where onnxruntime can do without: of Conv weights below 8 bits, and of what is
    dequantized at load. Gemm and MatMul fuse only with one, and 8-bit weights overflow the 16-bit sums of x86 CPUs
    without VNNI, for which the session option against that (session.x64quantprecision) needs weights with a zero
    point of their own (onnxruntime 1.16 and 1.31).
    """

    name = "onnxruntime"
    weight_widths = range(1, 9)
    activation_widths = range(2, 9)
    mixes = True
    for_onnxruntime = True
    speed = (
        "where the kernel says integer, weights of every width run at the speed of int8; elsewhere they are "
        "dequantized once, at load, and run at the speed of the float model",
    )

    def weight(self, key: str, shape: tuple[int, ...], bits: int, integer: bool = True) -> Recipe:
        """See Target."""
        name = f"{self.stem}{key}"
        if bits == 8:
            plain = ConstantSpec(name, np.int8, shape, lambda codes: codes.astype(np.int8))
            return Recipe(name, (plain,), zero_points="kept" if integer else "left out")
        made = Unpacking(self.stem)
        codes = made.add(name, int(np.prod(shape, dtype=np.int64)), bits)
        made.node("Reshape", (codes, made.use(_shape_key(shape))), name)
        return made.recipe(name, "left out for Conv" if integer else "left out")

    def mixed_weight(
        self, key: str, shape: tuple[int, ...], axis: int, widths: Sequence[int], integer: bool = True
    ) -> Recipe:
        """See Target."""
        name = f"{self.stem}{key}"
        groups: dict[int, list[int]] = {}
        for channel, bits in enumerate(widths):
            groups.setdefault(bits, []).append(channel)
        if len(groups) == 1:
            return self.weight(key, shape, widths[0], integer)
        made = Unpacking(self.stem)
        each = int(np.prod(shape, dtype=np.int64)) // len(widths)
        parts = []
        for letter, (bits, channels) in zip("ABCDEFGH", groups.items(), strict=False):
            pick = Channels(axis, tuple(channels))
            parts.append(made.flat(made.add(f"{name}{letter}", each * len(channels), bits, pick)))
        steps: list[tuple[str, tuple[str, ...], dict[str, int | list[int]]]] = [("Concat", (), {"axis": 0})]
        channels_first = (shape[axis], *shape[:axis], *shape[axis + 1 :])
        steps.append(("Reshape", (made.use(_shape_key(channels_first)),), {}))
        order = [channel for channels in groups.values() for channel in channels]
        if order != sorted(order):
            steps.append(("Gather", (made.order(f"{name}p", order),), {}))
        if axis:
            back = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
            steps.append(("Transpose", (), {"perm": back}))
        read = tuple(parts)
        for number, (operator, more, attributes) in enumerate(steps):
            output = name if number == len(steps) - 1 else f"{name}{'xyw'[number]}"
            made.node(operator, (*read, *more), output, attributes)
            read = (output,)
        if not integer:
            return made.recipe(name, "left out")
        return made.recipe(name, "kept" if 8 in groups else "left out for Conv")

    def shared(self, key: str) -> Recipe:
        """See Target.

        t4: table of 4-bit codes; s4x8: bytes spread to fields of 4 bits at bit 8; d64x3: the shape [64, 3];
        c15: the uint8 number 15; i16: the int32 number 16; flat, start, column: shapes and axes.
        """
        name = f"{self.stem}{key}"
        if key in _SHAPES:
            return Recipe(name, (fixed_constant(name, np.array(_SHAPES[key], np.int64)),))
        kind, numbers = key[0], [int(number) for number in key[1:].split("x")]
        match kind:
            case "d":
                return Recipe(name, (fixed_constant(name, np.array(numbers, np.int64)),))
            case "c":
                return Recipe(name, (fixed_constant(name, np.array(numbers[0], np.uint8)),))
            case "i":
                return Recipe(name, (fixed_constant(name, np.array(numbers[0], np.int32)),))
            case "t":
                return self._code_table(name, Layout(numbers[0]))
            case "s":
                return self._spread_table(name, width=numbers[0], shift=numbers[1])
        raise KeyError(key)

    def _code_table(self, name: str, layout: Layout) -> Recipe:
        """int8 [2^index_bits, codes_per_index]: row i holds the codes whose fields make up index i."""
        low, _ = code_range(layout.bits, signed=True)
        build = _Builder(self, name)
        rows = build.rows(2**layout.index_bits)
        total = ""
        for piece, width in enumerate(layout.pieces):
            shifts = [2 ** (layout.field_shift(piece) + width * code) for code in range(layout.codes_per_index)]
            part = build.field(rows, shifts, 2**width)
            if piece:
                part = build.node("Mul", part, build.number(2 ** layout.value_shift(piece)))
                part = build.node("Add", total, part)
            total = part
        centred = build.node("Sub", total, build.number(-low))
        return build.finish("Cast", centred, to=3)

    def _spread_table(self, name: str, width: int, shift: int) -> Recipe:
        """int32 [256, 8 / width]: a byte's fields of `width` bits, each moved up by `shift` bits."""
        build = _Builder(self, name)
        rows = build.rows(256)
        part = build.field(rows, [2 ** (width * place) for place in range(8 // width)], 2**width)
        return build.finish("Mul", part, build.number(2**shift))


class _Builder:
    """Collects the nodes of a table; numbers come from the shared int32 constants."""

    def __init__(self, target: OnnxRuntimeTarget, name: str) -> None:
        self.target = target
        self.name = name
        self.constants: list[ConstantSpec] = []
        self.nodes: list[NodeSpec] = []
        self.used: list[str] = []

    def number(self, value: int) -> str:
        return self._use(f"i{value}")

    def node(self, op_type: str, *inputs: str) -> str:
        output = f"{self.name}{chr(ord('a') + len(self.nodes))}"
        self.nodes.append(NodeSpec(op_type, inputs, output))
        return output

    def rows(self, count: int) -> str:
        """int32 [count, 1]: 0, 1, 2, ..."""
        numbers = self.node("Range", self.number(0), self.number(count), self.number(1))
        return self.node("Unsqueeze", numbers, self._use("column"))

    def field(self, rows: str, divisors: list[int], modulus: int) -> str:
        """(rows div divisors) mod modulus, int32 [rows, divisors]."""
        constant = fixed_constant(f"{self.name}{chr(ord('A') + len(self.constants))}", np.array([divisors], np.int32))
        self.constants.append(constant)
        return self.node("Mod", self.node("Div", rows, constant.name), self.number(modulus))

    def finish(self, op_type: str, *inputs: str, **attributes: int) -> Recipe:
        self.nodes.append(NodeSpec(op_type, inputs, self.name, attributes))
        return Recipe(self.name, tuple(self.constants), tuple(self.nodes), tuple(dict.fromkeys(self.used)))

    def _use(self, key: str) -> str:
        self.used.append(key)
        return f"{self.target.stem}{key}"


_SHAPES = {"flat": [-1], "start": [0], "column": [1]}


def _shape_key(shape: tuple[int, ...]) -> str:
    return "d" + "x".join(map(str, shape))
