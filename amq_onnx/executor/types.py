"""ONNX element types, and how the executor holds each of them in torch.

Every float type is held in the executor's own dtype. Integers are held as they are, except those that torch
can't compute with: 4- and 2-bit ones are held in 8 bits, uint16 in int32, uint32 and uint64 in int64.
"""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper

from amq_onnx.skeleton import inferred

FLOATS = frozenset(
    {
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.BFLOAT16,
        TensorProto.DOUBLE,
        TensorProto.FLOAT8E4M3FN,
        TensorProto.FLOAT8E4M3FNUZ,
        TensorProto.FLOAT8E5M2,
        TensorProto.FLOAT8E5M2FNUZ,
        TensorProto.FLOAT8E8M0,
        TensorProto.FLOAT4E2M1,
    }
)

RANGES: dict[int, tuple[int, int]] = {
    TensorProto.INT2: (-2, 1),
    TensorProto.UINT2: (0, 3),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-(2**15), 2**15 - 1),
    TensorProto.UINT16: (0, 2**16 - 1),
    TensorProto.INT32: (-(2**31), 2**31 - 1),
    TensorProto.UINT32: (0, 2**32 - 1),
    TensorProto.INT64: (-(2**63), 2**63 - 1),
    TensorProto.UINT64: (0, 2**64 - 1),
}

_HELD: dict[int, torch.dtype] = {
    TensorProto.BOOL: torch.bool,
    TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8,
    TensorProto.INT4: torch.int8,
    TensorProto.UINT4: torch.uint8,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.UINT16: torch.int32,
    TensorProto.INT32: torch.int32,
    TensorProto.UINT32: torch.int64,
    TensorProto.INT64: torch.int64,
    TensorProto.UINT64: torch.int64,
}

_WRITTEN: dict[int, torch.dtype] = {
    TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32,
    TensorProto.UINT64: torch.uint64,
}


def held_dtype(element_type: int, dtype: torch.dtype) -> torch.dtype | None:
    """The torch dtype that holds an ONNX element type in a graph, None for strings, complex numbers and such."""
    return dtype if element_type in FLOATS else _HELD.get(element_type)


def output_dtype(element_type: int, dtype: torch.dtype) -> torch.dtype | None:
    """The torch dtype in which a graph output of an ONNX element type leaves the executor."""
    return _WRITTEN.get(element_type) or held_dtype(element_type, dtype)


def torch_tensor(proto: onnx.TensorProto, dtype: torch.dtype) -> torch.Tensor:
    """A copy of `proto` in the dtype that holds its element type. Raises ValueError for strings and such."""
    held = held_dtype(proto.data_type, dtype)
    if held is None:
        raise ValueError(f"tensors of type {TensorProto.DataType.Name(proto.data_type)} can't be computed with")
    array = numpy_helper.to_array(proto)
    if array.dtype.isbuiltin != 1:  # bfloat16, int4 and such, which torch doesn't take from numpy
        array = array.astype(np.float32 if proto.data_type in FLOATS else np.int16)
    elif array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    return torch.tensor(array).to(held)


def tensor_element_type(proto: onnx.TypeProto) -> int:
    """The element type of a tensor, or of the tensors in a sequence or an optional; 0 where it isn't said."""
    while (form := proto.WhichOneof("value")) in ("sequence_type", "optional_type"):
        proto = getattr(proto, form).elem_type
    return int(proto.tensor_type.elem_type)


def _collect(graph: onnx.GraphProto, types: dict[str, int]) -> None:
    for values in (graph.value_info, graph.input, graph.output):
        for value in values:
            if kind := tensor_element_type(value.type):
                types[value.name] = kind
    for tensor in graph.initializer:
        types[tensor.name] = tensor.data_type
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                types[node.output[0]] = attribute.t.data_type
            if attribute.type == onnx.AttributeProto.GRAPH:
                _collect(attribute.g, types)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """The ONNX element type of every tensor of `model` and its subgraphs that type inference can tell."""
    types: dict[str, int] = {}
    _collect(model.graph, types)
    _collect(inferred(model).graph, types)
    _collect(model.graph, types)
    return types
