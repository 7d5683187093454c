"""Lets weights that no integer kernel reads be dequantized once, when the runtime loads the model, or row by row."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass
from amq_onnx.passes.kernels import is_constant, is_integer


class DequantizeAtLoad(Pass):
    """Writes the dequantization of a constant, or of rows of one, as operators that runtimes fold.

    Before:  codes (constant) -> DequantizeLinear(scale, axis) -> LSTM
             codes (constant) -> Gather -> DequantizeLinear(scale) -> LayerNormalization
    After:   codes (constant) -> Cast(float) -> Mul(scale) -> LSTM
             codes (constant) -> Gather -> Cast(float) -> Mul(scale) -> LayerNormalization

    The numbers are the same bit for bit. onnxruntime keeps a DequantizeLinear of constants for its integer kernels,
    and where none takes it computes it anew at every run (1.3 to 1.6 times the time of the float Conv); a Cast and
    a Mul it folds, and the layer runs at the speed of the float model. A DequantizeLinear of an embedding's rows it
    repeats for each reader, element by element, and no longer sees a norm in its parts. Left alone: weights with a
    reader on an integer kernel, and zero points other than 0, tensors of unknown rank.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        changed = False
        outputs = {id(tensor) for tensor in graph.outputs}
        for node in list(graph.nodes):
            if node.op != "DequantizeLinear" or not (is_constant(node.inputs[0]) or _are_rows(node)):
                continue
            real = node.outputs[0]
            if id(real) in outputs or any(is_integer(reader) for reader in real.outputs):
                continue
            codes, scale, *zero_point = node.inputs
            if not isinstance(scale, gs.Constant) or (zero_point and np.any(zero_point[0].values)):
                continue
            rank = _rank(codes)
            if scale.values.ndim and rank is None and node.attrs.get("axis", 1) != -1:
                continue
            node.outputs.clear()
            cast = gs.Variable(f"{real.name}c", np.float32)
            graph.nodes.append(gs.Node("Cast", "", {"to": int(onnx.TensorProto.FLOAT)}, [codes], [cast]))
            graph.nodes.append(gs.Node("Mul", "", {}, [cast, _along_axis(scale, node, rank)], [real]))
            changed = True
        return changed


def _are_rows(dequantize: gs.Node) -> bool:
    """Whether a Gather picks what is dequantized from a constant."""
    made = dequantize.inputs[0].inputs
    return bool(made) and made[0].op == "Gather" and is_constant(made[0].inputs[0])


def _rank(codes: gs.Tensor) -> int | None:
    """How many dimensions a constant, perhaps transposed, reshaped or reordered, has; None where that isn't known."""
    if codes.shape is not None:
        return len(codes.shape)
    producer = codes.inputs[0]
    if producer.op == "Transpose" or (producer.op == "Gather" and _rank(producer.inputs[1]) == 1):
        return _rank(producer.inputs[0])
    if producer.op == "Reshape" and isinstance(producer.inputs[1], gs.Constant):
        return int(producer.inputs[1].shape[0])
    if producer.op == "Cast":
        return _rank(producer.inputs[0])
    return None


def _along_axis(scale: gs.Constant, node: gs.Node, rank: int | None) -> gs.Constant:
    """The scale in the shape that multiplies along the node's axis."""
    if scale.values.ndim == 0 or rank is None:  # the last axis needs no rank
        return scale
    behind = rank - 1 - node.attrs.get("axis", 1) % rank
    if not behind:
        return scale
    return gs.Constant(f"{scale.name}b", scale.values.reshape(-1, *[1] * behind))
