"""Folds a factor for each output behind a linear layer into it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.base import Pass, is_standard, only_reader


class FoldLayerScale(Pass):
    """Multiplies the weight and the bias of a linear layer instead of what it makes.

    Before:  x -> MatMul(W) -> Add(b) -> Mul(g) -> y      g: one number, or one for each column of W
    After:   x -> MatMul(W * g) -> Add(b * g) -> y

    So without the Add, and for Gemm(W, b), transposed or not. Such factors end the blocks of ConvNeXt, CaiT and DINOv2,
    and in float they take another pass over the tensor. Scales of weights are those of columns, so that rounding loses
    what it lost. Left alone: weights that aren't constants or have other readers, what something else reads, and other
    shapes.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for layer in [node for node in graph.nodes if node.op in ("Gemm", "MatMul") and is_standard(node)]:
            while _fold(layer, outputs):
                changed = True
        return changed


def _fold(layer: gs.Node, outputs: set[int]) -> bool:
    """Fold one factor, if there is one."""
    last, behind = layer, only_reader(layer, outputs)
    if layer.op == "MatMul" and behind is not None and behind.op == "Add":
        last, behind = behind, only_reader(behind, outputs)
    held = (2,) if layer.op == "Gemm" else (0, 1) if last is not layer else ()
    places = [at for at in held if at < len(last.inputs) and last.inputs[at] is not layer.outputs[0]]
    factor = _factor(layer, [last.inputs[at] for at in places], last, behind)
    if factor is None or behind is None:
        return False
    weight = layer.inputs[1]
    transposed = layer.op == "Gemm" and layer.attrs.get("transB", 0)
    weight.values = (weight.values * (factor.reshape(-1, 1) if transposed else factor)).astype(np.float32)
    for at in places:  # other layers may share the bias, where it is all zeros
        last.inputs[at] = gs.Constant(f"{weight.name}.bias", (last.inputs[at].values * factor).astype(np.float32))
    last.outputs, behind.outputs = list(behind.outputs), []
    behind.inputs.clear()
    return True


def _factor(
    layer: gs.Node, biases: list[gs.Tensor], last: gs.Node, behind: gs.Node | None
) -> NDArray[np.float64] | None:
    """What `behind` multiplies all that `last` makes by, [1] or [outputs of the layer], if the layer can take that."""
    weight = layer.inputs[1]
    if behind is None or behind.op != "Mul" or not isinstance(weight, gs.Constant) or len(weight.outputs) != 1:
        return None
    transposed = layer.op == "Gemm" and layer.attrs.get("transB", 0)
    made = weight.shape[0 if transposed else -1]
    number = next((tensor for tensor in behind.inputs if tensor is not last.outputs[0]), None)
    if len(weight.shape) != 2 or not isinstance(number, gs.Constant) or tuple(number.shape) not in ((), (1,), (made,)):
        return None
    if not all(isinstance(bias, gs.Constant) and tuple(bias.shape) == (made,) for bias in biases):
        return None
    return np.asarray(number.values, np.float64).reshape(-1)
