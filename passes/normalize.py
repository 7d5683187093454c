"""Brings exporters' habits into one form, so that later passes see weights as initializers."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import Pass, is_standard, only_reader, replace_readers
from amq_onnx.passes.names import free_names
from amq_onnx.passes.new_nodes import NewNodes


class ConstantsToInitializers(Pass):
    """Turns Constant nodes into initializers.

    Before:  Constant(value=W) -> w -> Conv
    After:   initializer w -> Conv

    So in subgraphs, which have initializers of their own. Sparse and string constants are left alone.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        for part in (graph, *graph.subgraphs(recursive=True)):
            outputs = {id(tensor) for tensor in part.outputs}
            for node in part.nodes:
                values = _constant_values(node) if node.op == "Constant" else None
                if values is None or id(node.outputs[0]) in outputs:
                    continue
                output = node.outputs[0]
                node.outputs.clear()
                output.to_constant(values)
                changed = True
        return changed


class DropIdentities(Pass):
    """Removes nodes that pass their input on: Identity, and Dropout as inference runs it.

    Before:  x -> Identity -> y -> Conv
    After:   x -> Conv

    One that makes a graph output, or whose Dropout mask is used, stays.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        outputs = {id(tensor) for tensor in graph.outputs}
        for node in list(graph.nodes):
            if node.op not in ("Identity", "Dropout") or node.domain:
                continue
            if any(id(tensor) in outputs for tensor in node.outputs) or any(mask.outputs for mask in node.outputs[1:]):
                continue
            if node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2].name:
                training = node.inputs[2]
                if not isinstance(training, gs.Constant) or bool(training.values.any()):
                    continue
            if _made_in_subgraph(graph, node.outputs[0]):
                continue
            replace_readers(node.outputs[0], node.inputs[0])
            node.outputs.clear()
            changed = True
        return changed


class MeansToPooling(Pass):
    """Writes a mean over all spatial dimensions as the pooling that runtimes have integer kernels for.

    Before:  x [N, C, H, W] -> ReduceMean(axes = [2, 3], keepdims = 0) -> y
    After:   x [N, C, H, W] -> GlobalAveragePool -> Flatten -> y              (no Flatten with keepdims = 1)

    Left alone: means over other dimensions, inputs whose rank isn't known, and the means of norms in parts ([N, T, C]
    over C): of squares, or taken off what they are of. onnxruntime makes one LayerNormalization of such parts.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        for node in graph.nodes:
            if node.op != "ReduceMean" or not node.inputs[0].shape:
                continue
            rank = len(node.inputs[0].shape)
            axes = _axes(node)
            if rank < 3 or axes is None or sorted(axis % rank for axis in axes) != list(range(2, rank)):
                continue
            if _is_of_norm(node):
                continue
            keep = node.attrs.get("keepdims", 1)
            node.op, node.attrs, node.inputs = "GlobalAveragePool", {}, [node.inputs[0]]
            if not keep:
                output = node.outputs[0]
                pooled = gs.Variable(f"{output.name}.pooled", output.dtype)
                node.outputs = [pooled]
                graph.nodes.append(gs.Node("Flatten", "", {"axis": 1}, [pooled], [output]))
            changed = True
        return changed


class SumsToAdds(Pass):
    """Writes a sum of several tensors as the Adds that runtimes have integer kernels for.

    Before:  a, b, c -> Sum -> y;    or each -> Unsqueeze(axis) -> Concat(axis) -> ReduceSum(axis, keepdims = 0) -> y
    After:   a, b -> Add -> d;  d, c -> Add -> y

    The second is how PyTorch exports the sum of a stack, as in EfficientDet's pyramids. Left alone: a Concat or a
    single tensor that something else reads as well, a stack with parts that are no Unsqueeze along the axis that is
    summed, axes that count from both ends, and a Sum of one tensor.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in list(graph.nodes):
            terms = list(node.inputs) if node.op == "Sum" and is_standard(node) else _stacked(node, outputs)
            if len(terms) < 2:
                continue
            made = node.outputs[0]
            node.outputs.clear()
            add = NewNodes(graph, free_names(graph, f"{made.name}_"))
            total = terms[0]
            for term in terms[1:]:
                total = add("Add", [total, term], made.dtype)
            total.inputs[0].outputs = [made]
            changed = True
        return changed


def _stacked(node: gs.Node, outputs: set[int]) -> list[gs.Tensor]:
    """The tensors that a ReduceSum adds up which are joined for it alone, each made a layer of a stack; else none."""
    stack = node.inputs[0].inputs[0] if node.op == "ReduceSum" and node.inputs[0].inputs else None
    if stack is None or stack.op != "Concat" or node.attrs.get("keepdims", 1) or only_reader(stack, outputs) is None:
        return []
    axes = [stack.attrs["axis"]]
    layers = [layer for tensor in stack.inputs for layer in tensor.inputs if layer.op == "Unsqueeze"]
    if len(layers) < len(stack.inputs) or any(_axes(each) != axes for each in (node, *layers)):
        return []
    return [layer.inputs[0] for layer in layers]


def _is_of_norm(mean: gs.Node) -> bool:
    """Whether a mean is a variance or mean square, or is subtracted from what it is the mean of."""
    source = mean.inputs[0]
    made = source.inputs[0] if source.inputs else None
    if made is not None and (made.op == "Pow" or (made.op == "Mul" and made.inputs[0] is made.inputs[1])):
        return True
    return any(reader.op == "Sub" and reader.inputs[0] is source for reader in mean.outputs[0].outputs)


def require_float(model: onnx.ModelProto) -> None:
    """Raise ModelError, naming the node or tensor, if `model` is quantized already, or nothing could be fed to it."""
    for node in model.graph.node:
        kind = node.op_type
        if kind in ("QuantizeLinear", "DequantizeLinear") or "Integer" in kind or "QLinear" in kind:
            raise ModelError(
                f"the model is quantized already (node '{node.name or node.output[0]}' is a {kind}): "
                "give the float model that it was made from"
            )
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.BFLOAT16:
            raise ModelError(
                f"'{value.name}' is bfloat16, which numpy and onnxruntime's CPU kernels don't have: "
                "convert the model to float32 or float16"
            )


def _made_in_subgraph(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    """True where a subgraph hands `tensor` of the outer graph out as its own output."""
    return any(
        tensor.name == output.name for subgraph in graph.subgraphs(recursive=True) for output in subgraph.outputs
    )


def _axes(node: gs.Node) -> list[int] | None:
    """The axes of a reduction: an attribute before opset 18, an input from there on."""
    if "axes" in node.attrs:
        return list(node.attrs["axes"])
    if len(node.inputs) > 1 and isinstance(node.inputs[1], gs.Constant):
        return [int(axis) for axis in node.inputs[1].values]
    return None


def _constant_values(node: gs.Node) -> np.ndarray | None:
    attributes = node.attrs
    if "value" in attributes:
        values = attributes["value"]
        return values.values if isinstance(values, gs.Constant) else None
    for name, dtype in (("value_float", np.float32), ("value_floats", np.float32)):
        if name in attributes:
            return np.asarray(attributes[name], dtype)
    for name in ("value_int", "value_ints"):
        if name in attributes:
            return np.asarray(attributes[name], np.int64)
    return None
