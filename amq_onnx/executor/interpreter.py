"""The one executor: runs any ONNX graph in torch, differentiably, by tensor name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import onnx
import torch

from amq_onnx.errors import DataError
from amq_onnx.executor import registry
from amq_onnx.executor.node import NodeContext
from amq_onnx.executor.program import Program, Settings
from amq_onnx.executor.proto import node_label, opset_of
from amq_onnx.executor.types import FLOATS, element_types, held_dtype, output_dtype
from amq_onnx.functions import inlined


@dataclass(frozen=True, slots=True)
class UnsupportedOperator:
    """A node that the executor can't run."""

    op_type: str
    domain: str
    opset: int
    node: str


class Executor:
    """Runs and differentiates one ONNX graph in torch, by tensor name.

    All float tensors, whatever their ONNX type, are held in `dtype`. Integers keep their type, except that
    4- and 2-bit ones are held in 8 bits, uint16 in int32, uint32 and uint64 in int64 (torch can't compute
    with those); graph outputs leave in their own type. The codes that QuantizeLinear yields are carried as
    float tensors of integer values up to DequantizeLinear, through every operator that only moves or
    compares values, so that gradients pass straight through; an operator that computes with integers gets
    integers.

    Integer constants, and what is computed from them alone, are read once; a float initializer that acts as
    an attribute (the bounds of Clip, the scales of Resize) is read when outputs are first asked for, if not
    given. Dropout acts as in inference, and random operators give the same numbers in every run.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: Mapping[str, torch.Tensor]

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """Bind the nodes of `model` (external data loaded) to operators.

        Raises ModelError for a graph or an initializer it can't hold.
        """
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"the executor computes in float32 or float64, not in {dtype}")
        model = inlined(model)
        settings = Settings(_opsets(model), element_types(model), dtype, torch.device(device))
        self.dtype, self.device = dtype, settings.device
        self._program = Program(model.graph, settings)
        self.inputs, self.outputs = self._program.inputs, self._program.outputs
        self.initializers = MappingProxyType(self._program.constants)
        self._declared = {value.name: value for value in model.graph.input}
        self._output_dtypes: dict[str, torch.dtype | None] = {
            name: output_dtype(self._program.element_type(name), dtype) for name in self.outputs
        }

    def run(self, values: Mapping[str, torch.Tensor], outputs: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
        """The tensors named in `outputs` (the graph's outputs by default), by name.

        values: tensors by name: graph inputs, and any initializer or intermediate tensor to be replaced. What
            is given is not computed, so any set of tensors can be the leaves of a gradient.
        outputs: names of any tensors of the graph; only the nodes that they need are run.

        Nothing is modified in place and nothing is remembered, so this composes with torch.func. Integer
        codes asked for by name are float tensors, unless they are outputs of the graph. A sequence is a list of
        tensors and an empty optional None, given or computed.

        Raises UnsupportedOperatorError for a node that is needed and whose operator the executor lacks,
        DataError for a graph input that is needed and missing, a name that the graph doesn't have,
        or a graph input of a type or shape other than declared (its first dimension may always vary).
        """
        names = self.outputs if outputs is None else tuple(outputs)
        given = {name: self._admitted(name, value) for name, value in values.items()}
        if unknown := [name for name in names if name not in self._program.names]:
            raise DataError(f"the graph has no tensor '{unknown[0]}' to be computed.")
        results = dict(zip(names, self._program.run(given, names), strict=True))
        for name in names:
            written = self._output_dtypes.get(name)
            if written is not None:
                results[name] = _in_dtype(results[name], written)
        return results

    def entries(self, constant: str) -> tuple[str, ...]:
        """Where an initializer meets what varies: outputs of the nodes that read it, or what was computed from it and
        other constants alone, together with something that depends on the graph's inputs.
        """
        return self._program.entries(constant)

    def node(self, output: str) -> NodeContext:
        """The node that makes a tensor."""
        return self._program.node(output)

    def unchanged(self, changed: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
        """What to give beside the tensors `changed`, so that `run` computes only what depends on these.

        The tensors that don't depend on them, but on the graph's inputs, and that are needed for `outputs` together
        with something that does; outputs that don't depend on them are among these.
        """
        return self._program.unchanged(changed, outputs)

    def _admitted(self, name: str, value: Any) -> Any:
        """`value` in the dtype in which the graph holds tensor `name`."""
        if name not in self._program.names:
            raise DataError(f"the graph has no tensor '{name}' to be given.")
        kind = self._program.element_type(name)
        held = self.dtype if name in self._program.codes else held_dtype(kind, self.dtype)
        if name in self._declared and isinstance(value, torch.Tensor):
            self._check_declared(name, value, kind)
        return value if held is None else _in_dtype(value, held)

    def _check_declared(self, name: str, value: torch.Tensor, kind: int) -> None:
        if kind and (kind in FLOATS) != value.dtype.is_floating_point:
            wanted = onnx.TensorProto.DataType.Name(kind)
            raise DataError(f"graph input '{name}' is declared {wanted} but a {value.dtype} tensor was given.")
        declared = self._declared[name].type.tensor_type
        if not declared.HasField("shape"):
            return
        sizes = [axis.dim_value if axis.HasField("dim_value") else None for axis in declared.shape.dim]
        fits = value.dim() == len(sizes) and all(
            size is None or size == got for size, got in zip(sizes[1:], value.shape[1:], strict=True)
        )
        if not fits:
            wanted = [axis.dim_param or size or "?" for axis, size in zip(declared.shape.dim, sizes, strict=True)]
            shape = ", ".join(str(item) for item in wanted)
            raise DataError(f"graph input '{name}' has shape {list(value.shape)} where [{shape}] is declared.")


def _in_dtype(value: Any, dtype: torch.dtype) -> Any:
    """A tensor, or the tensors of a sequence, in `dtype`; an empty optional as it is."""
    if isinstance(value, list):
        return [_in_dtype(item, dtype) for item in value]
    return value if value is None or value.dtype == dtype else value.to(dtype)


def unsupported_operators(model: onnx.ModelProto) -> list[UnsupportedOperator]:
    """Nodes of `model`, functions inlined and subgraphs included, whose operator the executor lacks."""
    model = inlined(model)
    opsets = _opsets(model)
    return [
        UnsupportedOperator(node.op_type, node.domain, opset_of(node.domain, opsets), node_label(node))
        for node in _nodes(model.graph)
        if node.op_type != "Constant" and registry.find(node.op_type, node.domain) is None
    ]


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {"" if item.domain == "ai.onnx" else item.domain: item.version for item in model.opset_import}
