"""Sites: the tensors of a graph that can be quantized, each with one encoding for all that read it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from amq_onnx.errors import ModelError, UsageError
from amq_onnx.model.activation_sites import ActivationSite, find_activations, float_outputs, readers_of_codes
from amq_onnx.model.weight_sites import OPERATORS, find_weights
from amq_onnx.passes.kernels import biased

# Constants below this many elements are biases, shapes and bounds, which nobody asks about.
_WORTH_A_REASON = 1024
_NOT_ROUNDED = "a Conv makes it for an output of the model, which would be rounded: --quantize-outputs does"


@dataclass(frozen=True)
class WeightSite:
    """A constant that layers take their weights from.

    axis: the output channels' dimension, along which scales run; None for one scale. needs: for each reader that
    has an integer kernel, the activation sites that must be quantized for it to run; empty where every reader
    computes in float.
    """

    name: str
    shape: tuple[int, ...]
    axis: int | None
    operators: tuple[str, ...]
    needs: tuple[frozenset[str], ...] = ()

    @property
    def elements(self) -> int:
        """How many weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def channels(self) -> int:
        """How many scales."""
        return 1 if self.axis is None else self.shape[self.axis]

    def is_integer(self, activations: Collection[str]) -> bool:
        """True if a reader runs on integer kernels when `activations` are quantized."""
        return any(needed <= set(activations) for needed in self.needs)


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
            dropped |= dict.fromkeys(self.matching("--exclude", pattern), f"excluded by --exclude '{pattern}'")
        return self.without(dropped)

    def matching(self, option: str, pattern: str) -> list[str]:
        """Names of the sites that a regular expression, given with `option`, matches (`re.search`).

        Raises UsageError for one that is none or matches no site.
        """
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{option} '{pattern}' is not a regular expression: {error}") from error
        every = [site.name for site in self.weights] + [site.name for site in self.activations]
        names = [name for name in every if expression.search(name)]
        if not names:
            raise UsageError(f"{option} '{pattern}' matches no site: `amq inspect` lists their names")
        return names

    def without(self, reasons: dict[str, str]) -> Sites:
        """Without the sites that `reasons` names, which it says why stay float."""
        return Sites(
            tuple(site for site in self.weights if site.name not in reasons),
            tuple(site for site in self.activations if site.name not in reasons),
            {**self.left_float, **reasons},
        )


def find_readers_of_codes(model: onnx.ModelProto, *, outputs: bool = False) -> dict[str, frozenset[str]]:
    """Of float tensors of a prepared model that some read as codes, the first outputs of those (`readers_of_codes`)."""
    return readers_of_codes(*_with_weights(model), outputs=outputs)


def find_float_outputs(model: onnx.ModelProto) -> list[str]:
    """Of a prepared model, what Convs make that leaves the graph, where it may not be codes."""
    return float_outputs(*_with_weights(model))


def _with_weights(model: onnx.ModelProto) -> tuple[gs.Graph, set[int]]:
    """The graph of `model`, and ids of the tensors that its layers read as weights."""
    graph = gs.import_onnx(model)
    weights = find_weights(graph, {tensor.name for tensor in model.graph.initializer}, {})
    return graph, {id(read) for found in weights for read in found.reads}


def find_sites(model: onnx.ModelProto, *, outputs: bool = False) -> Sites:
    """The sites of a prepared model (constants folded into initializers); with `outputs`, also what Convs make that
    leaves the graph.

    Raises ModelError if there is no weight to quantize, with the reasons.
    """
    graph = gs.import_onnx(model)
    left_float: dict[str, str] = {}
    weights = find_weights(graph, {tensor.name for tensor in model.graph.initializer}, left_float)
    if not weights:
        reasons = "; ".join(f"'{name}': {reason}" for name, reason in list(left_float.items())[:3])
        raise ModelError(
            f"the model has no layer to quantize: no {', '.join(sorted(OPERATORS))} with a constant float32 weight"
            + (f" ({reasons})" if reasons else "")
        )
    read = {id(tensor) for found in weights for tensor in found.reads}
    activations, needs = find_activations(graph, read, outputs=outputs)
    if not outputs:
        left_float |= dict.fromkeys(float_outputs(graph, read), _NOT_ROUNDED)
    sites = tuple(
        WeightSite(
            found.tensor.name,
            tuple(found.tensor.shape),
            found.axis,
            tuple(dict.fromkeys(node.op for node in found.readers)),
            tuple(dict.fromkeys(needs[id(node)] for node in found.readers if id(node) in needs)),
        )
        for found in weights
    )
    for name, reason in _others(graph, {site.name for site in sites} | set(left_float)):
        left_float[name] = reason
    return Sites(sites, activations, left_float)


def _others(graph: gs.Graph, known: Collection[str]) -> Iterable[tuple[str, str]]:
    """Large float constants that no layer reads, as a weight or as a bias, and why they stay as they are."""
    for tensor in graph.tensors().values():
        if not isinstance(tensor, gs.Constant) or tensor.name in known or tensor.dtype != np.float32:
            continue
        large = int(np.prod(tensor.shape, dtype=np.int64)) >= _WORTH_A_REASON
        if large and not all(_is_bias(tensor, node, known) for node in tensor.outputs):
            readers = ", ".join(sorted({node.op for node in tensor.outputs}))
            yield tensor.name, f"{readers} reads it, which is no layer with weights"


def _is_bias(tensor: gs.Constant, reader: gs.Node, weights: Collection[str]) -> bool:
    """Whether `reader` adds `tensor` to products with one of `weights`."""
    if reader.op in ("GRU", "LSTM", "RNN"):
        return reader.inputs[1].name in weights and any(read is tensor for read in reader.inputs[3:4])
    found = biased(reader)
    return found is not None and reader.inputs[found[1]] is tensor and found[0].inputs[1].name in weights
