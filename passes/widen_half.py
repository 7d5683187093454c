"""Computes in float32 what a model computes in float16 or bfloat16."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.names import free_name, taken_names

_HALF_TYPES = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
# Attributes that name an element type: of Cast, of EyeLike and random numbers, of windows, of DequantizeLinear.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_datatype", "output_dtype")


class WidenHalf(Pass):
    """Gives all tensors of 16-bit floats 32 bits, but for the graph's inputs and outputs.

    Before:  x (float16) -> MatMul(W: float16) -> y (float16)
    After:   x (float16) -> Cast -> MatMul(W: float32) -> Cast -> y (float16)

    onnxruntime's integer kernels make and take float32 alone, and on the CPU it does nearly all else in float32 too,
    with a Cast before and behind. So in subgraphs. Casts between 16 and 32 bits are left out where the type of what
    they read is known; shapes should have been inferred before.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        parts = (graph, *graph.subgraphs(recursive=True))
        tensors = {id(tensor): tensor for part in parts for tensor in _tensors(part)}
        nodes = [node for part in parts for node in part.nodes]
        interface = _given_only_to_casts(graph) | _made_by_casts(graph)
        nodes = [node for node in nodes if not any(id(tensor) in interface for tensor in node.outputs)]
        inner = [tensor for tensor in tensors.values() if id(tensor) not in interface]
        if not any(_is_half(tensor.dtype) for tensor in inner) and not any(map(_names_half, nodes)):
            return False
        _keep_interface(graph, interface)
        for tensor in inner:
            _widen(tensor)
        for node in nodes:
            for name, value in node.attrs.items():
                if isinstance(value, gs.Constant):
                    _widen(value)
                elif name in _TYPE_ATTRIBUTES and value in _HALF_TYPES:
                    node.attrs[name] = int(onnx.TensorProto.FLOAT)
            if node.op == "Cast" and node.attrs["to"] == onnx.TensorProto.FLOAT and node.inputs[0].dtype == np.float32:
                node.op, node.attrs = "Identity", {}
        return True


def _given_only_to_casts(graph: gs.Graph) -> set[int]:
    """The graph's 16-bit inputs of which no node but a Cast reads: ids."""
    return {
        id(tensor)
        for tensor in graph.inputs
        if _is_half(tensor.dtype) and tensor.outputs and all(node.op == "Cast" for node in tensor.outputs)
    }


def _made_by_casts(graph: gs.Graph) -> set[int]:
    """The graph's 16-bit outputs that a Cast makes and no node reads: ids."""
    return {
        id(tensor)
        for tensor in graph.outputs
        if _is_half(tensor.dtype) and [node.op for node in tensor.inputs] == ["Cast"] and not tensor.outputs
    }


def _keep_interface(graph: gs.Graph, kept: set[int]) -> None:
    """Put Casts between the graph's 16-bit inputs and outputs and the tensors that nodes read and make.

    kept: ids of those that have their Cast.
    """
    taken = taken_names(graph)
    given: dict[int, gs.Variable] = {}
    casts: list[gs.Node] = []
    for index, tensor in enumerate(graph.inputs):
        if _is_half(tensor.dtype) and id(tensor) not in kept:
            given[id(tensor)] = graph.inputs[index] = _renamed(tensor, taken)
            casts.append(_cast(graph.inputs[index], tensor, onnx.TensorProto.FLOAT))
    for index, tensor in enumerate(graph.outputs):
        if id(tensor) in given:
            graph.outputs[index] = given[id(tensor)]
        elif _is_half(tensor.dtype) and id(tensor) not in kept:
            kind = tensor.dtype if isinstance(tensor.dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(tensor.dtype)
            graph.outputs[index] = _renamed(tensor, taken)
            casts.append(_cast(tensor, graph.outputs[index], int(kind)))
    graph.nodes.extend(casts)


def _renamed(tensor: gs.Tensor, taken: Counter[str]) -> gs.Variable:
    """A tensor of the type, shape and name of `tensor`, which gets another name."""
    kept = gs.Variable(tensor.name, tensor.dtype, tensor.shape)
    taken[tensor.name] += 1
    tensor.name = free_name(tensor.name, taken)
    return kept


def _cast(source: gs.Tensor, target: gs.Tensor, kind: int) -> gs.Node:
    return gs.Node("Cast", "", {"to": kind}, [source], [target])


def _widen(tensor: gs.Tensor) -> None:
    if not _is_half(tensor.dtype):
        return
    if isinstance(tensor, gs.Constant):
        tensor.values = np.asarray(tensor.values).astype(np.float32)
    else:
        tensor.dtype = np.dtype(np.float32)


def _tensors(part: gs.Graph) -> list[gs.Tensor]:
    return [*part.tensors().values(), *part.inputs, *part.outputs]


def _names_half(node: gs.Node) -> bool:
    return any(name in _TYPE_ATTRIBUTES and value in _HALF_TYPES for name, value in node.attrs.items())


def _is_half(kind: Any) -> bool:
    """Whether an element type, numpy's or where that has none onnx's number, is float16 or bfloat16."""
    return kind in _HALF_TYPES if isinstance(kind, int) else kind is not None and np.dtype(kind) == np.float16
