"""Names that are free in a graph and all its subgraphs, which share one scope from the outside in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count

import onnx_graphsurgeon as gs


def taken_names(graph: gs.Graph) -> Counter[str]:
    """How many different tensors have each name, at any depth."""
    tensors = {
        id(tensor): tensor for part in (graph, *graph.subgraphs(recursive=True)) for tensor in part.tensors().values()
    }
    return Counter(tensor.name for tensor in tensors.values())


def free_name(name: str, taken: Counter[str]) -> str:
    """`name` if only one tensor has it, else a new one like it, which is taken from then on."""
    if taken[name] <= 1:
        return name
    number = 1
    while taken[f"{name}_{number}"]:
        number += 1
    taken[name] -= 1
    taken[f"{name}_{number}"] += 1
    return f"{name}_{number}"


def free_names(graph: gs.Graph, prefix: str) -> Iterator[str]:
    """Names for new tensors of `graph`: prefix0, prefix1, ..., but for those that it has now."""
    taken = set(graph.tensors())
    return (name for number in count() if (name := f"{prefix}{number}") not in taken)


def drop_taken_node_names(graph: gs.Graph, joining: list[gs.Node]) -> None:
    """Leave nodes that are to join `graph` without a name where one there has it: onnxruntime refuses two of a name."""
    taken = {node.name for node in graph.nodes}
    for node in joining:
        if node.name in taken:
            node.name = ""
        taken.add(node.name)
