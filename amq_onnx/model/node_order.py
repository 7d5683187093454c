"""The order of a graph's nodes: onnxruntime finds its own, ONNX wants each behind those that it reads from."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter

import onnx

from amq_onnx.passes.subgraphs import subgraphs
from amq_onnx.scope import names_read


def sort_nodes(model: onnx.ModelProto) -> None:
    """Put the nodes of every graph in an order that ONNX allows, where they are in none; the same for the same file.

    A graph with a cycle stays as it is, for the checker to name.
    """
    # The innermost first: what a graph reads from outside is told by the order of its nodes.
    for graph in (*reversed(list(subgraphs(model.graph))), model.graph):
        _sort(graph)


def _sort(graph: onnx.GraphProto) -> None:
    makers = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    needed = [{makers[name] for name in names_read(node) if name in makers} for node in graph.node]
    if all(maker < number for number, read in enumerate(needed) for maker in read):
        return
    try:
        order = list(TopologicalSorter({number: sorted(read) for number, read in enumerate(needed)}).static_order())
    except CycleError:
        return
    sorted_nodes = onnx.GraphProto()
    for number in order:
        sorted_nodes.node.add().CopyFrom(graph.node[number])
    del graph.node[:]
    graph.node.extend(sorted_nodes.node)
