"""Which names nodes read, those that their subgraphs read from the graphs around them among them."""

from __future__ import annotations

import onnx


def names_read(node: onnx.NodeProto) -> list[str]:
    """Names that `node` reads: its inputs, and what its subgraphs read from outside."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names += free_names(attribute.g)
    return names


def free_names(graph: onnx.GraphProto) -> list[str]:
    """Names that `graph` reads from the graphs around it, in the order of their first use."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    found: dict[str, None] = {}
    for node in graph.node:
        found.update(dict.fromkeys(name for name in names_read(node) if name not in known))
        known.update(node.output)
    found.update(dict.fromkeys(value.name for value in graph.output if value.name not in known))
    return list(found)
