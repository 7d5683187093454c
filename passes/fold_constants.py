"""Computes what depends on constants only."""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass

# Results larger than this stay computed in the graph, whatever they come from.
_FOLDED_BYTES = 64 * 1024 * 1024
# Results of as many elements take no more room than the nodes that compute them.
_FEW_ELEMENTS = 256


class FoldConstants(Pass):
    """Computes what depends on constants only.

    Before:  W -> Transpose -> Wt -> MatMul          After:  Wt -> MatMul

    Folding is onnx-graphsurgeon's, which evaluates nodes in onnxruntime. The file becomes no larger by it: what has
    more elements than the constants that it comes from stays computed (at load, in onnxruntime), such as a mask or the
    waves of a Fourier transform; and so does the Transpose of a constant that others read too, as of embeddings tied to
    the last layer, which would be stored twice.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        before = _count(graph)
        graphs = (graph, *graph.subgraphs(recursive=True))
        grown = {name for part in graphs for name in _grown(part)}

        def stays(node: gs.Node) -> bool:  # of a copy of the graph, where names are the same
            return any(made.name in grown for made in node.outputs) or _shares(node)

        if not any(_foldable(node) and not stays(node) for part in graphs for node in part.nodes):
            return False
        graph.fold_constants(
            size_threshold=_FOLDED_BYTES, error_ok=True, should_exclude_node=stays, flatten_subgraphs=False
        ).cleanup()
        return _count(graph) != before


def _foldable(node: gs.Node) -> bool:
    if node.op in ("Shape", "Size"):
        return True
    named = [tensor for tensor in node.inputs if tensor.name]
    return bool(named) and all(isinstance(tensor, gs.Constant) for tensor in named)


def _count(graph: gs.Graph) -> int:
    """Nodes of a graph and all its subgraphs."""
    return sum(len(part.nodes) for part in (graph, *graph.subgraphs(recursive=True)))


def _shares(node: gs.Node) -> bool:
    """True for a Transpose of a matrix or larger constant that has other readers."""
    if node.op != "Transpose":
        return False
    source = node.inputs[0]
    return isinstance(source, gs.Constant) and len(source.shape) > 1 and len(source.outputs) > 1


def _grown(graph: gs.Graph) -> set[str]:
    """Results in one graph that have more elements than the constants that they come from, where all that is computed
    from them alone has more as well."""
    sources: dict[int, dict[int, int]] = {}
    for node in graph.nodes:
        found = _sources(node, sources)
        if found is not None:
            sources[id(node)] = found
    grown: set[str] = set()
    for node in reversed(graph.nodes):
        if id(node) not in sources:
            continue
        readers = [reader for made in node.outputs for reader in made.outputs if id(reader) in sources]
        large = sum(_elements(made) for made in node.outputs) > max(_FEW_ELEMENTS, sum(sources[id(node)].values()))
        if large and all(made.name in grown for reader in readers for made in reader.outputs):
            grown.update(made.name for made in node.outputs)
    return grown


def _sources(node: gs.Node, sources: dict[int, dict[int, int]]) -> dict[int, int] | None:
    """Elements of the constants that the results of `node` come from, by id; None where something else has a part.

    sources: of the nodes before it.
    """
    if node.op in ("Shape", "Size"):
        return {}
    found: dict[int, int] = {}
    for tensor in node.inputs:
        if isinstance(tensor, gs.Constant):
            found[id(tensor)] = _elements(tensor)
        elif tensor.inputs and id(tensor.inputs[0]) in sources:
            found |= sources[id(tensor.inputs[0])]
        elif tensor.name:
            return None
    return found if node.inputs else None


def _elements(tensor: gs.Tensor) -> int:
    """How many a tensor has; none where its shape isn't known."""
    shape = tensor.shape
    known = shape is not None and all(isinstance(size, int) for size in shape)
    return math.prod(shape) if known else 0
