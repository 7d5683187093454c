"""Finds the activations of a graph that integer kernels read and write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.affine import affine, affine_step
from amq_onnx.passes.base import is_standard
from amq_onnx.passes.hard_sigmoid_codes import is_hard_sigmoid
from amq_onnx.passes.kernels import ABSORBED, behind_absorbed
from amq_onnx.passes.place import is_carrier
from amq_onnx.passes.prelu_codes import has_constant_slopes

# Operators that compute on codes where all they read and write is quantized; so does PRelu (PReluOnCodes).
JOINS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"})


@dataclass(frozen=True)
class ActivationSite:
    """A tensor between nodes. readers: the operators that read it (through carriers)."""

    name: str
    readers: tuple[str, ...]


def find_activations(
    graph: gs.Graph, weights: Collection[int], *, outputs: bool = False
) -> tuple[tuple[ActivationSite, ...], dict[int, frozenset[str]]]:
    """Activation sites in the graph's order and, by id of each layer with an integer kernel, the sites it needs.

    weights: ids of the tensors that layers read their weights as. outputs: whether a Conv may write codes that leave
    the graph. Sites are what those layers read, what joins between them read, and what a Conv writes, since its kernel
    writes codes.
    """
    anchors = {id(node): node for node in graph.nodes if _is_anchor(graph, node, weights, outputs)}
    joins = _quantized_joins(graph, set(anchors))
    readers: dict[int, list[str]] = {}
    sources: dict[int, gs.Tensor] = {}

    def add(tensor: gs.Tensor, operators: list[str]) -> str:
        sources[id(tensor)] = tensor
        readers.setdefault(id(tensor), []).extend(operators)
        return str(tensor.name)

    needs: dict[int, set[str]] = {key: set() for key in anchors}
    for node, tensor in _read_as_codes(graph, anchors, joins, weights):
        name = add(_source(_in_front(node, tensor)), [node.op])
        if id(node) in anchors:
            needs[id(node)].add(name)
    for key, node in anchors.items():
        if node.op == "Conv":
            written = behind_absorbed(node.outputs[0], sources)
            if id(written) not in sources:
                add(written, [reader.op for reader in written.outputs])
            needs[key].add(written.name)
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    ordered = sorted(sources.values(), key=lambda tensor: position[id(tensor.inputs[0])] if tensor.inputs else -1)
    found = tuple(
        ActivationSite(tensor.name, tuple(dict.fromkeys(readers[id(tensor)])))
        for tensor in ordered
        if (tensor.dtype is None or np.dtype(tensor.dtype) == np.float32) and not _breaks_between_codes(tensor)
    )
    return found, {key: frozenset(names) for key, names in needs.items()}


def float_outputs(graph: gs.Graph, weights: Collection[int]) -> list[str]:
    """What Convs make that leaves the graph, where it may not be codes. weights: see find_activations."""
    convs = [node for node in graph.nodes if node.op == "Conv" and _is_anchor(graph, node, weights, True)]
    return [str(node.outputs[0].name) for node in convs if _is_output(graph, node.outputs[0])]


def readers_of_codes(graph: gs.Graph, weights: Collection[int], *, outputs: bool = False) -> dict[str, frozenset[str]]:
    """Of float tensors that layers read as codes and others as they are, the first outputs of the readers of codes.

    Such is a norm's output that is added again behind the layers, as in BERT. What integer kernels make is left out:
    it is codes for all. weights, outputs: see find_activations.
    """
    anchors = {id(node) for node in graph.nodes if _is_anchor(graph, node, weights, outputs)}
    joins = _quantized_joins(graph, anchors)
    sources: dict[int, gs.Tensor] = {}
    on_codes = anchors | joins  # and what stands between them and the tensors that are rounded
    for node, tensor in _read_as_codes(graph, anchors, joins, weights):
        source = _source(_in_front(node, tensor))
        sources[id(source)] = source
        while tensor is not source:
            on_codes.add(id(tensor.inputs[0]))
            tensor = tensor.inputs[0].inputs[0]
    found = {}
    for source in sources.values():
        codes = [reader for reader in source.outputs if id(reader) in on_codes]
        if len(codes) < len(source.outputs) and not _from_quantized(source, anchors | joins):
            found[str(source.name)] = frozenset(str(reader.outputs[0].name) for reader in codes)
    return found


def _read_as_codes(
    graph: gs.Graph, anchors: Collection[int], joins: Collection[int], weights: Collection[int]
) -> Iterator[tuple[gs.Node, gs.Tensor]]:
    """Every operator that computes on codes with each activation that it reads, in the graph's order."""
    for node in graph.nodes:
        if id(node) not in anchors and id(node) not in joins:
            continue
        for tensor in node.inputs[:2] if id(node) in anchors else node.inputs:
            if id(tensor) not in weights and not isinstance(tensor, gs.Constant):
                yield node, tensor


def _is_anchor(graph: gs.Graph, node: gs.Node, weights: Collection[int], outputs: bool) -> bool:
    """True for a layer that integer kernels can run: weights on the right, or a product of two activations."""
    if not is_standard(node):
        return False
    match node.op:
        case "Conv":
            return id(node.inputs[1]) in weights and (outputs or not _is_output(graph, node.outputs[0]))
        case "Gemm":
            return id(node.inputs[1]) in weights
        case "MatMul":
            constant = [isinstance(tensor, gs.Constant) or id(tensor) in weights for tensor in node.inputs]
            return id(node.inputs[1]) in weights or not any(constant)
        case _:
            return False


def _is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """True where `tensor` leaves the graph with no computation behind it: 8-bit codes would be what users see."""
    outputs = {id(output) for output in graph.outputs}
    return any(
        id(reached) in outputs for reached in _reached(tensor, lambda node: node.op == "Concat" or _passes_on(node))
    )


def _quantized_joins(graph: gs.Graph, anchors: set[int]) -> set[int]:
    """Ids of the joins that lie between quantized operators: all inputs from one, an output to one."""
    joins = {id(node): node for node in graph.nodes if _is_join(node) and not _breaks_between_codes(node.outputs[0])}
    changed = True
    while changed:
        quantized = anchors | set(joins)
        changed = False
        for key, node in list(joins.items()):
            read = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
            fed = all(_from_quantized(_in_front(node, tensor), quantized) for tensor in read)
            if not (fed and any(_to_quantized(tensor, quantized) for tensor in node.outputs)):
                del joins[key]
                changed = True
    return set(joins)


def _is_join(node: gs.Node) -> bool:
    if has_constant_slopes(node):
        return True
    return node.op in JOINS and not any(isinstance(tensor, gs.Constant) for tensor in node.inputs)


def _breaks_between_codes(tensor: gs.Tensor) -> bool:
    """True for what must stay float, or onnxruntime refuses the file.

    It makes a QLinearAveragePool of an AveragePool between codes, which has no dilations (opset 19); and it moves the
    Transpose behind a convolution of codes through a Resize in front of another one as if that named all dimensions
    (`axes`, opset 18).
    """
    made = tensor.inputs[0] if tensor.inputs else None
    if made is None:
        return False
    dilated = made.op == "AveragePool" and max(made.attrs.get("dilations", [1])) > 1
    return dilated or (made.op == "Resize" and "axes" in made.attrs)


def _in_front(node: gs.Node, tensor: gs.Tensor) -> gs.Tensor:
    """What must be quantized for `node` to read codes as `tensor`: of a factor, what it is the hard sigmoid of."""
    factor = tensor.inputs[0] if node.op == "Mul" and tensor.inputs else None
    return factor.inputs[0] if factor is not None and is_hard_sigmoid(factor) else tensor


def _source(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor whose values `tensor` holds, up through carriers; an Identity keeps readers apart (ReadersApart)."""
    while tensor.inputs and is_carrier(made := tensor.inputs[0]) and made.op != "Identity":
        if isinstance(made.inputs[0], gs.Constant):
            break
        tensor = made.inputs[0]
    return tensor


def _from_quantized(tensor: gs.Tensor, quantized: set[int]) -> bool:
    tensor = affine(_source(tensor)).source
    if not tensor.inputs:
        return False
    producer = tensor.inputs[0]
    if producer.op in ABSORBED and producer.inputs[0].inputs:
        producer = producer.inputs[0].inputs[0]
    return id(producer) in quantized


def _to_quantized(tensor: gs.Tensor, quantized: set[int]) -> bool:
    """True where a quantized operator reads `tensor`, through carriers and what a quantizer absorbs."""
    return any(id(reader) in quantized for reached in _reached(tensor, _is_absorbed) for reader in reached.outputs)


def _is_absorbed(node: gs.Node) -> bool:
    if _passes_on(node):
        return True
    step = affine_step(node)
    return step is not None and len(step.source.outputs) == 1


def _passes_on(node: gs.Node) -> bool:
    return node.op in ABSORBED or is_carrier(node)


def _reached(tensor: gs.Tensor, passes: Callable[[gs.Node], bool]) -> Iterator[gs.Tensor]:
    """`tensor` and what nodes that only pass it on make of it."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        reached = waiting.pop()
        yield reached
        for output in (output for reader in reached.outputs if passes(reader) for output in reader.outputs):
            if id(output) not in seen:
                seen.add(id(output))
                waiting.append(output)
