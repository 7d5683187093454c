"""Folds a factor for each output behind a linear layer into it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard, only_reader
from amq_onnx.passes.kernels import biased


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
        for scale in [node for node in graph.nodes if node.op == "Mul" and is_standard(node)]:
            factors = [tensor for tensor in scale.inputs if isinstance(tensor, gs.Constant)]
            makers = [tensor.inputs[0] for tensor in scale.inputs if tensor.inputs]
            if len(factors) != 1 or len(makers) != 1:
                continue
            alone = only_reader(makers[0], outputs) is scale
            if alone and _fold(makers[0], factors[0], outputs):
                makers[0].outputs, scale.outputs = list(scale.outputs), []
                scale.inputs.clear()
                changed = True
        return changed


def _fold(last: gs.Node, factor: gs.Constant, outputs: set[int]) -> bool:
    """Multiply the parameters of the layer that ends with `last` by `factor`, if it is one that they can take."""
    layer, place = biased(last) or (last, None)
    if layer.op not in ("Gemm", "MatMul") or not is_standard(layer):
        return False
    if (layer is not last and only_reader(layer, outputs) is not last) or (place is None and len(layer.inputs) > 2):
        return False
    weight = layer.inputs[1]
    if not isinstance(weight, gs.Constant) or len(weight.outputs) != 1 or len(weight.shape) != 2:
        return False
    transposed = layer.op == "Gemm" and layer.attrs.get("transB", 0)
    made = weight.shape[0 if transposed else 1]
    if tuple(factor.shape) not in ((), (1,), (made,)):
        return False
    if place is not None and tuple(last.inputs[place].shape) != (made,):
        return False
    numbers = factor.values.astype(np.float64).reshape(-1)
    weight.values = (weight.values * (numbers.reshape(-1, 1) if transposed else numbers)).astype(np.float32)
    if place is not None:  # other layers may share the bias, where it is all zeros
        shifts = (last.inputs[place].values * numbers).astype(np.float32)
        last.inputs[place] = gs.Constant(f"{weight.name}.bias", shifts)
    return True
