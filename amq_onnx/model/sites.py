"""Sites: the tensors of a graph that can be quantized, each with one encoding for all that read it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from amq_onnx.errors import ModelError, UsageError
from amq_onnx.passes.place import is_carrier

# Operators whose second input is a weight, with the integer kernels of every target.
WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
# Operators that compute on codes where all they read and write is quantized.
JOINS = frozenset({"Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool"})
# Operators that the quantizer behind them absorbs: their input needs no encoding of its own.
ABSORBED = frozenset({"Clip", "Relu"})


@dataclass(frozen=True)
class WeightSite:
    """A constant that weights of Conv, Gemm or MatMul nodes come from.

    axis: the output channels' dimension, along which scales run. elements: how many weights.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    operators: tuple[str, ...]

    @property
    def elements(self) -> int:
        """How many weights."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class ActivationSite:
    """A tensor between nodes. readers: the operators that read it (through carriers)."""

    name: str
    readers: tuple[str, ...]


@dataclass(frozen=True)
class Sites:
    """All sites of a graph, in its order, and why others stay float, by tensor name."""

    weights: tuple[WeightSite, ...]
    activations: tuple[ActivationSite, ...]
    left_float: dict[str, str] = field(default_factory=dict)

    def exclude(self, patterns: Iterable[str]) -> Sites:
        """Without the sites whose name one of the regular expressions matches (`re.search`).

        Raises UsageError for a pattern that is no regular expression or matches no site.
        """
        dropped: dict[str, str] = {}
        for pattern in patterns:
            try:
                expression = re.compile(pattern)
            except re.error as error:
                raise UsageError(f"--exclude '{pattern}' is not a regular expression: {error}") from error
            every = [site.name for site in self.weights] + [site.name for site in self.activations]
            names = [name for name in every if expression.search(name)]
            if not names:
                raise UsageError(f"--exclude '{pattern}' matches no site: `amq inspect` lists their names")
            dropped |= dict.fromkeys(names, f"excluded by --exclude '{pattern}'")
        return Sites(
            tuple(site for site in self.weights if site.name not in dropped),
            tuple(site for site in self.activations if site.name not in dropped),
            {**self.left_float, **dropped},
        )


def find_sites(model: onnx.ModelProto) -> Sites:
    """The sites of a prepared model (constants folded into initializers).

    Raises ModelError if there is no weight to quantize, with the reasons.
    """
    graph = gs.import_onnx(model)
    left_float: dict[str, str] = {}
    weights = list(_weights(graph, left_float))
    if not weights:
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in list(left_float.items())[:3])
        raise ModelError(
            "the model has no layer to quantize: no Conv, Gemm or MatMul with a constant float32 weight"
            + (f" ({reasons})" if reasons else "")
        )
    return Sites(tuple(weights), tuple(_activations(graph, {site.name for site in weights})), left_float)


def _weights(graph: gs.Graph, left_float: dict[str, str]) -> Iterator[WeightSite]:
    seen: set[str] = set()
    for node in graph.nodes:
        if node.op not in WEIGHTED or node.domain not in (None, "", "ai.onnx"):
            continue
        constants = [tensor for tensor in node.inputs[:2] if isinstance(tensor, gs.Constant)]
        for tensor in constants:
            if tensor.name in seen or tensor.name in left_float:
                continue
            reason = _unfit(tensor)
            if reason:
                left_float[tensor.name] = reason
                continue
            seen.add(tensor.name)
            readers = [reader for reader in tensor.outputs if reader.op in WEIGHTED]
            axis = _channel_axis(node, tensor)
            if any(_channel_axis(reader, tensor) != axis for reader in readers):
                left_float[tensor.name] = "its readers disagree on which dimension holds the output channels"
                continue
            yield WeightSite(
                tensor.name, tuple(tensor.shape), axis, tuple(dict.fromkeys(reader.op for reader in readers))
            )
    for subgraph in graph.subgraphs(recursive=True):
        for node in subgraph.nodes:
            for tensor in node.inputs[:2] if node.op in WEIGHTED else ():
                if isinstance(tensor, gs.Constant) and tensor.name not in seen:
                    left_float[tensor.name] = "it lies inside a subgraph (If, Loop or Scan)"


def _unfit(tensor: gs.Constant) -> str | None:
    dtype = np.dtype(tensor.dtype) if isinstance(tensor.dtype, (type, np.dtype)) else None
    if dtype != np.float32:
        kind = dtype.name if dtype is not None else "another type"
        return f"its values are {kind}: only float32 weights are quantized, so convert the model to float32"
    if len(tensor.shape) < 2:
        return "it is a vector or a scalar: too few values a channel to be worth a width"
    values = tensor.values
    if not values.size:
        return "it is empty"
    if not np.isfinite(values).all():
        return "it holds NaN or infinity"
    return None


def _channel_axis(node: gs.Node, weight: gs.Tensor) -> int:
    """Which dimension of `weight` holds the output channels of `node`."""
    rank = len(weight.shape)
    second = node.inputs[1] is weight
    match node.op:
        case "Conv":
            return 0
        case "Gemm":
            return (0 if node.attrs.get("transB", 0) else 1) if second else int(node.attrs.get("transA", 0))
        case _:
            return rank - 1 if second else rank - 2


def _activations(graph: gs.Graph, weights: set[str]) -> Iterator[ActivationSite]:
    anchors = [
        node
        for node in graph.nodes
        if node.op in WEIGHTED
        and (
            any(tensor.name in weights for tensor in node.inputs[:2])
            or (node.op == "MatMul" and not any(isinstance(tensor, gs.Constant) for tensor in node.inputs))
        )
    ]
    quantized = {id(node) for node in anchors}
    joins = _quantized_joins(graph, quantized)
    order: dict[str, list[str]] = {}
    position = {id(node): index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if id(node) not in quantized and id(node) not in joins:
            continue
        read = node.inputs[:2] if node.op in WEIGHTED else node.inputs
        for tensor in read:
            if not isinstance(tensor, gs.Constant):
                order.setdefault(_source(tensor).name, []).append(node.op)
    names = {tensor.name: tensor for tensor in graph.tensors().values()}
    ordered = sorted(order, key=lambda name: position[id(names[name].inputs[0])] if names[name].inputs else -1)
    for name in ordered:
        tensor = names[name]
        if tensor.dtype is None or np.dtype(tensor.dtype) == np.float32:
            yield ActivationSite(name, tuple(dict.fromkeys(order[name])))


def _quantized_joins(graph: gs.Graph, anchors: set[int]) -> set[int]:
    """Ids of the joins that lie between quantized operators: all inputs from one, an output to one."""
    joins = {
        id(node): node
        for node in graph.nodes
        if node.op in JOINS and not any(isinstance(tensor, gs.Constant) for tensor in node.inputs)
    }
    changed = True
    while changed:
        quantized = anchors | set(joins)
        changed = False
        for key, node in list(joins.items()):
            fed = all(_from_quantized(tensor, quantized) for tensor in node.inputs)
            read = any(_to_quantized(tensor, quantized) for tensor in node.outputs)
            if not (fed and read):
                del joins[key]
                changed = True
    return set(joins)


def _source(tensor: gs.Tensor) -> gs.Tensor:
    """The tensor whose values `tensor` holds, up through carriers."""
    while tensor.inputs and is_carrier(tensor.inputs[0]):
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _from_quantized(tensor: gs.Tensor, quantized: set[int]) -> bool:
    tensor = _source(tensor)
    if not tensor.inputs:
        return False
    producer = tensor.inputs[0]
    if producer.op in ABSORBED and producer.inputs[0].inputs:
        producer = producer.inputs[0].inputs[0]
    return id(producer) in quantized


def _to_quantized(tensor: gs.Tensor, quantized: set[int]) -> bool:
    """True where a quantized operator reads `tensor`, through carriers and absorbed operators."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        for reader in waiting.pop().outputs:
            if id(reader) in quantized:
                return True
            if reader.op in ABSORBED or is_carrier(reader):
                for output in reader.outputs:
                    if id(output) not in seen:
                        seen.add(id(output))
                        waiting.append(output)
    return False
