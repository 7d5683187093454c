"""What is read from the protos of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx
import torch
from onnx import AttributeProto, TensorProto

from amq_onnx.errors import ModelError
from amq_onnx.executor.types import torch_tensor


def node_label(node: onnx.NodeProto) -> str:
    """What messages call a node: its name, or that of its first output."""
    return node.name or next(iter(node.output), "")


def opset_of(domain: str, opsets: Mapping[str, int]) -> int:
    """The version that a model imports of `domain`, 1 where it doesn't say."""
    return opsets.get("" if domain == "ai.onnx" else domain, 1)


def attribute_value(attribute: AttributeProto, dtype: torch.dtype) -> Any:
    """The value of an attribute other than a graph: strings decoded, tensors in torch, lists as lists."""
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, TensorProto):
        return torch_tensor(value, dtype)
    if attribute.type == AttributeProto.STRINGS:
        return [item.decode() for item in value]
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def constant_tensor(node: onnx.NodeProto) -> TensorProto:
    """The tensor of a Constant node, whichever of its attributes holds it."""
    name = node.output[0]
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_int", "value_ints"):
            shape = [] if attribute.name == "value_int" else [len(attribute.ints)]
            integers = [attribute.i] if attribute.name == "value_int" else list(attribute.ints)
            return onnx.helper.make_tensor(name, TensorProto.INT64, shape, integers)
        if attribute.name in ("value_float", "value_floats"):
            shape = [] if attribute.name == "value_float" else [len(attribute.floats)]
            floats = [attribute.f] if attribute.name == "value_float" else list(attribute.floats)
            return onnx.helper.make_tensor(name, TensorProto.FLOAT, shape, floats)
        if attribute.name in ("value_string", "value_strings"):
            return TensorProto(name=name, data_type=TensorProto.STRING)
    raise ModelError(f"Constant node '{node.name or name}' holds a sparse tensor, which can't be computed.")
