"""Layers with a bias, or room for one: what shifts their output by a constant a channel."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import prod

import onnx
from onnx import helper

from amq_onnx.passes.kernels import WITH_BIAS
from amq_onnx.passes.subgraphs import subgraphs


@dataclass(frozen=True)
class Layer:
    """A node that multiplies `data` with the constant `weight`.

    output: the tensor that it makes, by which the layer is known. axis: the weight's output channels' dimension.
    groups: of a Conv or ConvTranspose, else 1. bias: the constant of one number a channel that is added to the output,
    None where there is none or something else reads it or the weight too. shiftable: the output can be shifted for
    free. alone: nothing else reads the weight. transposed: a Gemm reads its data transposed, whose second dimension
    then is that of the samples.
    """

    output: str
    operator: str
    data: str
    weight: str
    axis: int
    groups: int = 1
    bias: str | None = None
    shiftable: bool = True
    alone: bool = True
    transposed: bool = False


def linear_layers(model: onnx.ModelProto, weights: Collection[str]) -> list[Layer]:
    """The layers of the main graph, Conv, ConvTranspose, Gemm and MatMul, that multiply what varies with `weights`.

    The output of a Conv, ConvTranspose or Gemm is shifted by its bias, which it has or can be given; that of a MatMul
    where a constant is added to it and nothing else reads it. weights: names of those that are asked for.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    elsewhere = {name for inner in subgraphs(model.graph) for node in inner.node for name in node.input}
    found = []
    for node in model.graph.node:
        if len(node.input) < 2 or node.input[1] not in weights or node.input[0] in constants:
            continue
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        output, rank = node.output[0], len(constants[node.input[1]].dims)
        bias = node.input[2] if len(node.input) > 2 else ""
        shiftable = True
        if node.op_type in WITH_BIAS:
            shiftable = not bias or bias in constants
            if node.op_type == "Gemm":
                shiftable &= attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
                axis = 0 if attributes.get("transB", 0) else 1
            else:
                axis = 0 if node.op_type == "Conv" else 1
        elif node.op_type == "MatMul" and rank == 2:
            axis = 1
            shiftable = output not in outputs and _added(readers.get(output, []), constants)
            if shiftable:
                bias = next(name for name in readers[output][0].input if name in constants)
        else:
            continue
        groups = int(attributes.get("group", 1))
        channels = constants[node.input[1]].dims[axis] * (groups if node.op_type == "ConvTranspose" else 1)
        alone = len(readers[node.input[1]]) == 1 and node.input[1] not in elsewhere
        own = shiftable and bias in constants and prod(constants[bias].dims) == channels
        own = own and len(readers[bias]) == len(readers[node.input[1]]) == 1
        found.append(
            Layer(
                output,
                node.op_type,
                node.input[0],
                node.input[1],
                axis,
                groups,
                bias if own else None,
                shiftable,
                alone,
                node.op_type == "Gemm" and bool(attributes.get("transA", 0)),
            )
        )
    return found


def _added(readers: list[onnx.NodeProto], constants: Collection[str]) -> bool:
    return len(readers) == 1 and readers[0].op_type == "Add" and any(name in constants for name in readers[0].input)
