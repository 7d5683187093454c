"""Float operators around the quantizers of activations that are computed on codes in the written file."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
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
    reads are not among them, since their scales depend on that. stem, keys: as of InsertQDQ. around: by site, a model
    of these operators alone.
    """

    hard_sigmoids: Mapping[str, tuple[float, float, bool]]
    levels: Mapping[str, float]
    stem: str
    keys: Mapping[str, str]
    around: Mapping[str, onnx.ModelProto]

    def passes(self, encodings: Mapping[str, Encoding]) -> list[Pass]:
        """The passes that compute them on codes."""
        return [HardSigmoidsOnCodes(encodings, self.stem, self.keys), AbsorbAffine(self.levels)]

    def added_bytes(self, name: str, encoding: Encoding) -> int:
        """By how many bytes those passes make a file with this encoding larger."""
        if name not in self.around:
            return 0
        before = run(self.around[name], [InsertQDQ({name: encoding}, self.stem, self.keys)])
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
    nodes: dict[str, list[gs.Node]] = {}  # by site, those nearest to an output first
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
        clips = [(node, ends) for node in found.source.inputs if (ends := clip_bounds(node)) is not None]
        if found.nodes and found.source.name not in activations:
            levels[name] = found.shift
            nodes[name] = [*found.nodes, *(node for node, _ in clips)]
        for node, (low, _) in () if found.nodes else clips:
            if low and math.isfinite(low):
                levels[name] = low
                nodes[name] = [node]
    return CodeOperators(hard_sigmoids, levels, stem, keys, _around(model, graph, nodes))


def _around(
    model: onnx.ModelProto, graph: gs.Graph, nodes: Mapping[str, Sequence[gs.Node]]
) -> dict[str, onnx.ModelProto]:
    """For each site a model of its nodes alone: what others read of their tensors, a Neg reads."""
    made = {node.output[0]: node for node in model.graph.node if node.output}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    outputs = {tensor.name for tensor in graph.outputs}
    imports = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    found = {}
    for site, chosen in nodes.items():
        inside = {node.outputs[0].name for node in chosen}
        tensors = {tensor.name: tensor for node in chosen for tensor in (*node.inputs, *node.outputs) if tensor.name}
        read = [
            name
            for name, tensor in tensors.items()
            if name in outputs or any(each.outputs[0].name not in inside for each in tensor.outputs)
        ]
        sources = [name for name, tensor in tensors.items() if name not in inside and name not in constants]
        part = helper.make_graph(
            [*(made[node.outputs[0].name] for node in reversed(chosen)), *map(_negative, read)],
            "around",
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in sources],
            [helper.make_tensor_value_info(f"{name}_negative", onnx.TensorProto.FLOAT, [1]) for name in read],
            [constants[name] for name in tensors if name in constants],
        )
        found[site] = helper.make_model(part, opset_imports=imports, ir_version=model.ir_version)
    return found


def _negative(name: str) -> onnx.NodeProto:
    return helper.make_node("Neg", [name], [f"{name}_negative"])
