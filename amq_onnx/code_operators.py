"""Float operators around the quantizers of activations that are computed on codes in the written file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from amq_onnx.passes.absorb_affine import AbsorbAffine
from amq_onnx.passes.affine import affine
from amq_onnx.passes.base import Pass, run
from amq_onnx.passes.clips_on_codes import ClipsOnCodes, clip_bounds
from amq_onnx.passes.hard_sigmoid_codes import HardSigmoidsOnCodes, is_hard_sigmoid, slope
from amq_onnx.passes.insert_qdq import InsertQDQ
from amq_onnx.passes.strip import strip_exporter_metadata
from amq_onnx.quantizer.encoding import Encoding


@dataclass(frozen=True, eq=False)
class CodeOperators:
    """What the quantizers of a graph's activations can take over.

    hard_sigmoids: of each tensor that a HardSigmoid reads, its alpha and beta, and whether nothing else reads the
    tensor. levels: of each that is made by arithmetic with one number each time, what that adds in all, and of each
    that a Clip makes, its lower bound: a number that had better be a whole number of steps. Tensors that a HardSigmoid
    reads are not among them, since their scales depend on that. stem, keys: as of InsertQDQ.
    """

    hard_sigmoids: Mapping[str, tuple[float, float, bool]]
    levels: Mapping[str, float]
    stem: str
    keys: Mapping[str, str]
    _around: Mapping[str, onnx.ModelProto]

    def passes(self, encodings: Mapping[str, Encoding]) -> list[Pass]:
        """The passes that compute them on codes."""
        return [HardSigmoidsOnCodes(encodings, self.stem, self.keys), AbsorbAffine(self.levels)]

    def added_bytes(self, name: str, encoding: Encoding) -> int:
        """By how many bytes those passes make a file with this encoding larger."""
        if name not in self._around:
            return 0
        before = run(self._around[name], [InsertQDQ({name: encoding}, self.stem, self.keys)])
        after = run(before, [*self.passes({name: encoding}), ClipsOnCodes()])
        return self._bytes(after) - self._bytes(before)

    def _bytes(self, model: onnx.ModelProto) -> int:
        """Bytes of a model without codes that sites share."""
        stripped = strip_exporter_metadata(model)
        own = [tensor for tensor in stripped.graph.initializer if not tensor.name.startswith(f"{self.stem}c")]
        del stripped.graph.initializer[:]
        stripped.graph.initializer.extend(own)
        return len(stripped.SerializeToString())


def find_code_operators(
    model: onnx.ModelProto, activations: Collection[str], stem: str, keys: Mapping[str, str]
) -> CodeOperators:
    """Those around `activations`, the names of the sites."""
    graph = gs.import_onnx(model)
    nodes: dict[str, list[gs.Node]] = {}
    hard_sigmoids: dict[str, tuple[float, float, bool]] = {}
    for node in graph.nodes:
        name = node.inputs[0].name if is_hard_sigmoid(node) else ""
        if name in activations and name not in hard_sigmoids:
            hard_sigmoids[name] = (*slope(node), len(node.inputs[0].outputs) == 1)
            nodes[name] = [node]
    levels: dict[str, float] = {}
    for name, tensor in graph.tensors().items():
        if name not in activations or name in hard_sigmoids:
            continue
        found = affine(tensor)
        clip = [node for node in found.source.inputs if clip_bounds(node) is not None]
        low = (clip_bounds(clip[0]) or (0.0,))[0] if clip else 0.0
        if found.nodes and found.source.name not in activations:
            levels[name] = found.shift
            nodes[name] = [*found.nodes, *clip]
        elif not found.nodes and low and math.isfinite(low):
            levels[name] = low
            nodes[name] = clip
    outputs = {tensor.name for tensor in graph.outputs}
    around = {name: _alone(model, {node.outputs[0].name: node for node in nodes[name]}, outputs) for name in nodes}
    return CodeOperators(hard_sigmoids, levels, stem, keys, around)


def _alone(model: onnx.ModelProto, nodes: Mapping[str, gs.Node], outputs: Collection[str]) -> onnx.ModelProto:
    """A model of some nodes, by output: what others read of their tensors, a Neg reads."""
    chosen = [node for node in model.graph.node if node.output and node.output[0] in nodes]
    ends: list[onnx.ValueInfoProto] = []
    tensors = {tensor.name: tensor for node in nodes.values() for tensor in (*node.inputs, *node.outputs)}
    tensors.pop("", None)  # absent inputs
    for name, tensor in tensors.items():
        inside = [reader.outputs[0].name in nodes for reader in tensor.outputs]
        if name in outputs or not all(inside) or not inside:  # none: a subgraph reads it
            chosen.append(helper.make_node("Neg", [name], [f"{name}_negative"]))
            ends.append(helper.make_tensor_value_info(f"{name}_negative", onnx.TensorProto.FLOAT, [1]))
    sources = [name for name, tensor in tensors.items() if not isinstance(tensor, gs.Constant) and name not in nodes]
    graph = helper.make_graph(
        chosen,
        "around",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in sources],
        ends,
        [tensor for tensor in model.graph.initializer if tensor.name in tensors],
    )
    imports = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)
