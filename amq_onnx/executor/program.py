"""A graph made ready to run: nodes bound to operators, constants in torch, a plan for any set of outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from onnx import AttributeProto, TensorProto

from amq_onnx.errors import DataError, ModelError
from amq_onnx.executor import registry
from amq_onnx.executor.bound import Bound
from amq_onnx.executor.node import NodeContext, Subgraph
from amq_onnx.executor.plan import (
    ABSENT,
    Plan,
    Step,
    converting,
    on_one_device,
    python_value,
    reading_host_values,
)
from amq_onnx.executor.proto import attribute_value, constant_tensor, opset_of
from amq_onnx.executor.registry import Operator
from amq_onnx.executor.round_trips import round_trips_joined
from amq_onnx.executor.types import RANGES, held_dtype, tensor_element_type, torch_tensor
from amq_onnx.scope import free_names

HOST_ELEMENTS = 64  # integer constants up to this size stay on the CPU: they are shapes, axes and indices
KEPT_PLANS = 1024


@dataclass(frozen=True, slots=True)
class Settings:
    """What all programs of one model share."""

    opsets: Mapping[str, int]
    types: Mapping[str, int]
    dtype: torch.dtype
    device: torch.device


@dataclass(frozen=True, slots=True)
class _Folded:
    """The value of a tensor that depends on integer constants only, and everything it depends on."""

    value: torch.Tensor
    ancestors: frozenset[str]


class Program:
    """The nodes of one graph or subgraph, in order.

    `codes` names the tensors that hold the integer codes of a QuantizeLinear as floats, with their ONNX type.
    """

    def __init__(self, graph: onnx.GraphProto, settings: Settings) -> None:
        self._settings = settings
        self._types = dict(settings.types)
        self.constants: dict[str, torch.Tensor] = {}
        self._words: set[str] = set()  # constants that hold strings
        for tensor in graph.initializer:
            self._add_constant(tensor.name, tensor)
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise ModelError(f"initializer '{name}' is sparse, which the executor can't run: make it dense.")
        self.inputs = tuple(value.name for value in graph.input if value.name not in self.constants)
        self.outputs = tuple(value.name for value in graph.output)
        self.codes: dict[str, int] = {}
        self._bound: list[Bound] = []
        self._producer: dict[str, int] = {}
        for node in graph.node:
            self._add_node(node)
        self.names = frozenset({*self.inputs, *self.constants, *self._producer})
        self._is_output = frozenset(self.outputs)
        self._folded: dict[str, _Folded] = {}
        self._plans: dict[tuple[tuple[str, ...], frozenset[str]], Plan] = {}

    def node(self, output: str) -> NodeContext:
        """The node that makes a tensor."""
        return self._bound[self._producer[output]].node

    # -- construction

    def _add_constant(self, name: str, proto: onnx.TensorProto) -> None:
        if proto.data_type == TensorProto.STRING:
            self._words.add(name)
            return
        try:
            tensor = torch_tensor(proto, self._settings.dtype)
        except ValueError as error:
            raise ModelError(f"initializer '{name}' can't be used: {error}.") from error
        self._types.setdefault(name, proto.data_type)
        small = not tensor.dtype.is_floating_point and tensor.numel() <= HOST_ELEMENTS
        self.constants[name] = tensor if small else tensor.to(self._settings.device)

    def _add_node(self, proto: onnx.NodeProto) -> None:
        if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
            self._add_constant(proto.output[0], constant_tensor(proto))
            return
        opset = opset_of(proto.domain, self._settings.opsets)
        operator = registry.found_or_failing(proto, opset)
        captures: dict[str, None] = {}
        subgraphs: dict[str, Subgraph] = {}
        attributes: dict[str, Any] = {}
        for attribute in proto.attribute:
            if attribute.type == AttributeProto.GRAPH:
                captures.update(dict.fromkeys(free_names(attribute.g)))
                subgraphs[attribute.name] = _subgraph(attribute.g, self._settings)
            else:
                attributes[attribute.name] = attribute_value(attribute, self._settings.dtype)
        node = NodeContext(
            op_type=proto.op_type,
            domain=proto.domain,
            name=proto.name,
            opset=opset,
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            input_types=tuple(self._types.get(name, 0) for name in proto.input),
            output_types=(),
            attributes=attributes,
            dtype=self._settings.dtype,
            device=self._settings.device,
            captures=tuple(captures),
            subgraphs=subgraphs,
        )
        self._infer_types(node)
        node.output_types = tuple(self._types.get(name, 0) for name in proto.output)
        self._producer.update((name, len(self._bound)) for name in proto.output if name)
        reads = node.inputs + node.captures
        operator, converts = self._follow_codes(node, operator, reads)
        self._bound.append(Bound(node, operator, converts, reads))

    def _infer_types(self, node: NodeContext) -> None:
        """Element types that decide how codes are treated, where ONNX's inference was silent."""
        first = node.outputs[0] if node.outputs else ""
        if node.op_type == "QuantizeLinear":
            given = node.input_types[2] if len(node.input_types) > 2 else 0
            self._types[first] = node.integer("output_dtype") or given or TensorProto.UINT8
        elif node.op_type == "Cast":
            self._types[first] = node.integer("to")
        elif first and first not in self._types and node.input_types and node.input_types[0]:
            operator = registry.find(node.op_type, node.domain)
            if operator is not None and operator.codes:
                self._types[first] = node.input_types[0]

    def _follow_codes(
        self, node: NodeContext, operator: Operator, reads: tuple[str, ...]
    ) -> tuple[Operator, Mapping[int, torch.dtype]]:
        """Decide for one node which inputs arrive as codes, and mark its outputs that leave as codes."""
        dtype = self._settings.dtype
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):
            self.codes[node.outputs[0]] = self._types.get(node.outputs[0], TensorProto.UINT8)
        arriving = {i: self.codes[name] for i, name in enumerate(reads) if name in self.codes}
        if not arriving or operator.reads_codes:
            return operator, {}
        if node.op_type in ("Cast", "CastLike") and set(arriving) == {0}:
            kind, target = arriving[0], node.output_types[0]
            if target not in RANGES:
                identity = registry.find("Identity", "")
                return (identity, {}) if identity and held_dtype(target, dtype) == dtype else (operator, {})
            (low, high), (lowest, highest) = RANGES[kind], RANGES[target]
            if lowest <= low and high <= highest:  # every code fits: nothing changes, and gradients pass
                self.codes[node.outputs[0]] = target
                identity = registry.find("Identity", "")
                return identity or operator, {}
        fixed = operator.host | operator.indices
        moved = {kind for i, kind in arriving.items() if operator.codes and i not in fixed}
        held = {i: held_dtype(kind, dtype) or dtype for i, kind in arriving.items() if i in fixed or not operator.codes}
        if not moved:
            return operator, held
        for name, kind in zip(node.outputs, node.output_types, strict=True):
            if kind in moved and name:
                self.codes[name] = kind
        joined = [i for i, kind in enumerate(node.input_types) if kind in moved and i not in fixed]
        return operator, held | {i: dtype for i in joined if i not in arriving}

    # -- planning

    def plan(self, outputs: tuple[str, ...], given: frozenset[str]) -> Plan:
        """The plan for `outputs` when the tensors named in `given` are handed in; made once, then reused."""
        key = (outputs, given)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make_plan(outputs, given)
            if len(self._plans) >= KEPT_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
        return plan

    def _needed(self, outputs: Iterable[str], given: frozenset[str]) -> tuple[list[int], set[str]]:
        """Indices of the nodes that `outputs` need, in order, and the names they need from outside."""
        nodes: set[int] = set()
        outside: set[str] = set()
        pending = [name for name in outputs if name]
        seen: set[str] = set()
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in given or (name not in self._producer and name not in self.constants):
                outside.add(name)
            elif name in self._producer and not self._is_folded(name, given):
                index = self._producer[name]
                if index not in nodes:
                    nodes.add(index)
                    pending.extend(read for read in self._bound[index].reads if read)
        return sorted(nodes), outside

    def _is_folded(self, name: str, given: frozenset[str]) -> bool:
        folded = self._folded.get(name)
        return folded is not None and folded.ancestors.isdisjoint(given)

    def _make_plan(self, outputs: tuple[str, ...], given: frozenset[str]) -> Plan:
        nodes, outside = self._needed(outputs, given)
        if missing := [name for name in self.inputs if name in outside and name not in given]:
            raise DataError(f"graph input '{missing[0]}' is missing: give a tensor for it.")
        if words := sorted(self._words & outside - given):
            raise ModelError(f"constant '{words[0]}' holds strings, which can't be computed with.")
        nodes = self._fold(nodes, given)
        template: list[Any] = [None]
        slots: dict[str, int] = {}

        def slot(name: str) -> int:
            if not name:
                return ABSENT
            if name not in slots:
                slots[name] = len(template)
                template.append(None if name in given else self._constant(name, given))
            return slots[name]

        bound_nodes = round_trips_joined(
            [self._bound[index] for index in nodes], frozenset(outputs), given, lambda name: self._constant(name, given)
        )
        last: dict[str, int] = {}
        for index, bound in enumerate(bound_nodes):
            last.update((name, index) for name in bound.reads)
        # What is given stays as it is, also where its node runs for the sake of another output.
        written = (frozenset(last) | frozenset(outputs)) - given - {""}
        steps: list[Step] = []
        for index, bound in enumerate(bound_nodes):
            function, values = self._bind(bound, given)
            reads = []
            for i, name in enumerate(bound.reads):
                if i in values:
                    reads.append(len(template))
                    template.append(values[i])
                else:
                    reads.append(slot(name))
            writes = tuple(slot(name) if name in written else -1 for name in bound.node.outputs)
            frees = tuple(
                {
                    slot(name)
                    for name in bound.reads
                    if name and last[name] == index and name not in outputs and self._constant(name, given) is None
                }
            )
            steps.append(Step(function, bound.node, tuple(reads), writes, frees))
        results = tuple(slot(name) for name in outputs)
        handed = tuple((name, slots[name]) for name in sorted(outside) if name in slots)
        return Plan(template, handed, tuple(steps), results)

    def _constant(self, name: str, given: frozenset[str]) -> torch.Tensor | None:
        if name in given:
            return None
        if self._is_folded(name, given):
            return self._folded[name].value
        return self.constants.get(name)

    def _bind(self, bound: Bound, given: frozenset[str]) -> tuple[Callable[..., Any], dict[int, Any]]:
        """The call of one step, and by position the inputs that are Python values known in advance."""
        operator, values, computed = bound.operator, {}, []
        for i, name in enumerate(bound.reads):
            if not name or i not in operator.host | operator.literal:
                continue
            constant = self._constant(name, given)
            if constant is None:
                if i in operator.host:
                    computed.append(i)
            elif i in operator.host or constant.dim() == 0:
                values[i] = python_value(constant)
        function: Callable[..., Any] = operator.function
        if self._settings.device.type != "cpu":
            function = on_one_device(function)
        if computed:
            function = reading_host_values(function, computed)
        converts = {i: dtype for i, dtype in bound.converts.items() if i not in values}
        if converts:
            function = converting(function, converts)
        return function, values

    def _fold(self, nodes: list[int], given: frozenset[str]) -> list[int]:
        """Compute once what depends on integer constants alone (unpacked weights, shapes); return the rest.

        Floats are never folded: the caller may hand in or train any of them.
        """
        fresh: dict[str, _Folded] = {}
        rest: list[int] = []
        for index in nodes:
            bound = self._bound[index]
            ancestors = self._integer_ancestors(bound, given, fresh)
            if ancestors is None or not given.isdisjoint(bound.node.outputs):
                rest.append(index)
                continue
            names = tuple(name for name in bound.node.outputs if name)
            function, values = self._bind(bound, given | fresh.keys())
            arguments = [
                values[i] if i in values else fresh[name].value if name in fresh else self._constant(name, given)
                for i, name in enumerate(bound.reads)
            ]
            with torch.inference_mode(False), torch.no_grad():  # kept, so usable in any later mode
                result = function(bound.node, *arguments)
            results = result if isinstance(result, tuple) else (result,)
            for name, value in zip(bound.node.outputs, results, strict=False):
                if name:
                    fresh[name] = _Folded(value, ancestors | set(names))
        wanted = {name for index in rest for name in self._bound[index].reads} | set(self.outputs)
        self._folded.update((name, folded) for name, folded in fresh.items() if name in wanted)
        return rest

    def _integer_ancestors(
        self, bound: Bound, given: frozenset[str], fresh: Mapping[str, _Folded]
    ) -> frozenset[str] | None:
        names = [name for name in bound.reads if name]
        if not names or bound.node.subgraphs:
            return None
        ancestors: set[str] = set(names)
        for name in names:
            if name in fresh:
                ancestors |= fresh[name].ancestors
            elif self._is_folded(name, given):
                ancestors |= self._folded[name].ancestors
            elif name in given or name not in self.constants or self.constants[name].is_floating_point():
                return None
        return frozenset(ancestors)

    # -- what depends on what

    def entries(self, constant: str) -> tuple[str, ...]:
        """See Executor.entries."""
        varying, own = set(self.inputs), {constant}
        found: list[str] = []
        for bound in self._bound:
            outputs = [name for name in bound.node.outputs if name]
            varies = not varying.isdisjoint(bound.reads)
            if varies:
                varying.update(outputs)
            if not own.isdisjoint(bound.reads):
                if varies:
                    found += outputs
                else:
                    own.update(outputs)
        return tuple(found)

    def unchanged(self, changed: Sequence[str], outputs: Sequence[str]) -> tuple[str, ...]:
        """See Executor.unchanged."""
        needed, _ = self._needed(outputs, frozenset())
        varying, dependent = set(self.inputs), set(changed)
        read: dict[str, None] = {}
        for index in needed:
            bound = self._bound[index]
            if not varying.isdisjoint(bound.reads):
                varying.update(bound.node.outputs)
            if not dependent.isdisjoint(bound.reads):
                read.update(dict.fromkeys(bound.reads))
                dependent.update(name for name in bound.node.outputs if name not in changed)
        read.update(dict.fromkeys(outputs))
        return tuple(name for name in read if name in varying and name not in dependent)

    # -- running

    def run(self, values: Mapping[str, torch.Tensor], outputs: Sequence[str]) -> list[torch.Tensor]:
        """Tensors `outputs` from those in `values`. Integer outputs of the graph come in their held dtype."""
        plan = self.plan(tuple(outputs), frozenset(values))
        results = plan.run(values)
        for i, name in enumerate(outputs):
            if name in self.codes and name in self._is_output:
                results[i] = results[i].to(held_dtype(self.codes[name], self._settings.dtype))
        return results

    def call(self, arguments: Sequence[torch.Tensor], captured: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """As the body of a control-flow operator: `arguments` are its inputs in order."""
        return self.run({**captured, **dict(zip(self.inputs, arguments, strict=True))}, self.outputs)

    def element_type(self, name: str) -> int:
        """The ONNX element type of a tensor, 0 where it can't be told."""
        return self._types.get(name, 0)


def _subgraph(graph: onnx.GraphProto, settings: Settings) -> Subgraph:
    shapes = [value.type.tensor_type.shape for value in graph.output]
    return Subgraph(
        run=Program(graph, settings).call,
        output_types=tuple(tensor_element_type(value.type) for value in graph.output),
        output_sizes=tuple(tuple(axis.dim_value for axis in shape.dim) for shape in shapes),
    )
