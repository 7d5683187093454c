"""How one tensor is stored: constants and nodes, as plain data that a target writes and the pack pass builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from numpy.typing import DTypeLike, NDArray
from onnx import helper

Codes = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ConstantSpec:
    """An initializer whose values are made from the tensor's codes (int32, any shape) when it is written."""

    name: str
    dtype: DTypeLike
    shape: tuple[int, ...]
    values: Callable[[Codes], NDArray[np.generic]]


def fixed_constant(name: str, value: NDArray[np.generic]) -> ConstantSpec:
    """A constant that is the same whatever the codes."""
    return ConstantSpec(name, value.dtype, value.shape, lambda codes: value)


@dataclass(frozen=True)
class NodeSpec:
    """A node of the standard domain with one output, and attributes that are integers or lists of them."""

    op_type: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, int | list[int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Recipe:
    """Constants and nodes that compute `result`; `shared` names the recipes that several tensors use.

    zero_points: whether DequantizeLinear behind a weight names them, all 0: always, never, or unless only Conv nodes
    read it.
    """

    result: str
    constants: tuple[ConstantSpec, ...]
    nodes: tuple[NodeSpec, ...] = ()
    shared: tuple[str, ...] = ()
    zero_points: Literal["kept", "left out", "left out for Conv"] = "kept"

    def file_bytes(self) -> int:
        """Bytes that the recipe's own constants and nodes take in the file, to the byte.

        Protobuf messages add up but for the length prefix of the graph itself (ONNX protos, onnx.proto3).
        """
        return sum(map(_constant_bytes, self.constants)) + sum(map(_node_bytes, self.nodes))


_PACKED = {"int4": 4, "int2": 2}


def _varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def _embedded(length: int) -> int:
    """Bytes of an embedded message of `length` bytes in a field with a one-byte tag."""
    return 1 + _varint_bytes(length) + length


def _constant_bytes(constant: ConstantSpec) -> int:
    dtype = np.dtype(constant.dtype)
    header = onnx.TensorProto(name=constant.name, dims=constant.shape, data_type=helper.np_dtype_to_tensor_dtype(dtype))
    # INT4 and INT2 are packed, two and four to a byte (onnx.proto3, TensorProto.raw_data).
    bits = _PACKED.get(dtype.name, 8 * dtype.itemsize)
    raw = -(-int(np.prod(constant.shape, dtype=np.int64)) * bits // 8)
    return _embedded(header.ByteSize() + _embedded(raw))


def _node_bytes(node: NodeSpec) -> int:
    proto = helper.make_node(node.op_type, list(node.inputs), [node.output])
    proto.attribute.extend(helper.make_attribute(name, value) for name, value in node.attributes.items())
    return _embedded(proto.ByteSize())
