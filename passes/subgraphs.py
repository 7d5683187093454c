"""Weights inside subgraphs (bodies of If, Loop and Scan)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Every graph inside `graph`, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                yield inner
                yield from subgraphs(inner)


def hoist_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with the weights of its subgraphs among the initializers of the main graph.

    Before:  If(c) { Constant(value=W) -> w -> MatMul(x, w) }
    After:   initializer w;   If(c) { MatMul(x, w) }

    A subgraph sees the names of the graph around it, so nothing else changes, and weights can be found, measured and
    stored in one place. Moved are float tensors of two dimensions or more; left alone are names that several
    subgraphs use. `model` itself is not changed; it is returned where there is nothing to move.
    """
    held = [tensor.name for inner in subgraphs(model.graph) for tensor in _weights(inner)]
    taken = {tensor.name for tensor in model.graph.initializer}
    single = {name for name, count in Counter(held).items() if count == 1} - taken
    if not single:
        return model
    hoisted = onnx.ModelProto()
    hoisted.CopyFrom(model)
    for inner in list(subgraphs(hoisted.graph)):
        moved = [tensor for tensor in _weights(inner) if tensor.name in single]
        hoisted.graph.initializer.extend(moved)
        names = {tensor.name for tensor in moved}
        for index in reversed(range(len(inner.initializer))):
            if inner.initializer[index].name in names:
                del inner.initializer[index]
        for index in reversed(range(len(inner.node))):
            if inner.node[index].op_type == "Constant" and inner.node[index].output[0] in names:
                del inner.node[index]
    return hoisted


def restore_captured(source: onnx.GraphProto, target: onnx.GraphProto) -> None:
    """Undo onnx-graphsurgeon's copies: it writes a constant that a subgraph captures into that subgraph as well, and
    leaves it out of the main graph if nothing else there reads it.

    source: the main graph before. target: as it was exported, changed in place.
    """
    outer = {tensor.name: tensor for tensor in source.initializer}
    present = {tensor.name for tensor in target.initializer}
    for inner in subgraphs(target):
        for index in reversed(range(len(inner.initializer))):
            name = inner.initializer[index].name
            if name in outer and name not in present:
                target.initializer.add().CopyFrom(inner.initializer[index])
                present.add(name)
            if name in present:
                del inner.initializer[index]


_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _weights(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Float tensors of two dimensions or more that `graph` itself holds, under the names its nodes know them by."""
    for tensor in graph.initializer:
        if _is_weight(tensor):
            yield tensor
    handed_out = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "Constant" or node.output[0] in handed_out:
            continue
        for attribute in node.attribute:
            if attribute.name == "value" and _is_weight(attribute.t):
                named = onnx.TensorProto()
                named.CopyFrom(attribute.t)
                named.name = node.output[0]
                yield named


def _is_weight(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1
