"""A model without its large tensors: what onnx's own tools, which take a model as one message, get of it.

protobuf serializes no more than 2 GiB, and onnx's shape inference, version converter, inliner and checker serialize a
model for each call. None of them looks into large tensors, so none has to be given them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import onnx
from google.protobuf.message import Message
from onnx import external_data_helper, helper

# What a message may have, with room for the graph around the tensors.
LARGEST_MESSAGE = 2_000_000_000
# A tensor is a message too, which some of the tools serialize by itself.
_LARGEST_TENSOR = LARGEST_MESSAGE
# Shapes, axes, scales and such, which the tools read, have fewer.
_KEPT_VALUES = 1024


def tensor_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all tensors of `model`, in its subgraphs and attributes too: nearly all that its message has."""
    return sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in external_data_helper._get_all_tensors(model))


def fits_one_message(model: onnx.ModelProto) -> bool:
    """Whether protobuf can serialize `model` as it is."""
    return tensor_bytes(model) < LARGEST_MESSAGE


def large_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Initializers that `skeleton` leaves out."""
    return [tensor for tensor in model.graph.initializer if _is_large(tensor)]


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that has none of its graph's initializers."""
    copy = onnx.ModelProto()
    _copy_fields(model, copy, "graph")
    _copy_fields(model.graph, copy.graph, "initializer")
    return copy


def skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` in which initializers of more than 1,024 values are inputs of their types and shapes."""
    copy = without_initializers(model)
    declared = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if not _is_large(tensor):
            copy.graph.initializer.append(tensor)
        elif tensor.name not in declared:
            typed = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            copy.graph.input.append(typed)
    return copy


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """The skeleton of `model` with all types and shapes that onnx's inference can tell; those declared if it fails."""
    bare = skeleton(model)
    try:
        return onnx.shape_inference.infer_shapes(bare)
    except Exception:  # inference is a courtesy
        return bare


def on_skeleton(model: onnx.ModelProto, rewrite: Callable[[onnx.ModelProto], onnx.ModelProto]) -> onnx.ModelProto:
    """What `rewrite` makes of `model`'s skeleton, with the tensors back in it, in the model's order."""
    rewritten = rewrite(skeleton(model))
    declared = {value.name for value in model.graph.input}
    left_out = {tensor.name: tensor for tensor in large_tensors(model)}
    inputs = [value for value in rewritten.graph.input if value.name not in left_out or value.name in declared]
    made = {tensor.name: tensor for tensor in rewritten.graph.initializer}
    ordered = [left_out.get(tensor.name, made.pop(tensor.name, None)) for tensor in model.graph.initializer]
    whole = without_initializers(rewritten)
    del whole.graph.input[:]
    whole.graph.input.extend(inputs)
    _copy_to(whole.graph.initializer, (tensor for tensor in [*ordered, *made.values()] if tensor is not None))
    return whole


def check_whole(model: onnx.ModelProto) -> None:
    """What `onnx.checker.check_model` does, of a model of any size, and without three times its memory.

    Raises what it raises: ValidationError, or ValueError for what protobuf can't serialize.
    """
    for tensor in large_tensors(model):
        if len(tensor.raw_data) > _LARGEST_TENSOR:
            raise ValueError(f"tensor '{tensor.name}' has {len(tensor.raw_data):,} bytes, and protobuf takes 2 GiB")
        onnx.checker.check_tensor(tensor)
    light = skeleton(model)
    if fits_one_message(light):  # weights in Constant nodes stay in it
        onnx.checker.check_model(light)


def _copy_to(held: Any, messages: Iterable[Message]) -> None:
    """`held.extend(messages)`, which protobuf does by serializing and parsing each of them."""
    for message in messages:
        held.add().CopyFrom(message)


def _is_large(tensor: onnx.TensorProto) -> bool:
    return bool(prod(tensor.dims) > _KEPT_VALUES)


def _copy_fields(source: Message, target: Message, left_out: str) -> None:
    """Give `target` all that `source` has but one field."""
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if hasattr(value, "extend") and len(value) and isinstance(value[0], Message):
            _copy_to(getattr(target, field.name), value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
