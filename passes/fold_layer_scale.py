"""Folds a factor for each output behind a linear layer into it."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.base import Pass, is_standard, only_reader
from amq_onnx.passes.kernels import biased

# What stands between a linear layer and the products of attention; a number multiplies on either side of it.
_RESHAPING = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


class FoldLayerScale(Pass):
    """Multiplies the weight and the bias of a linear layer instead of what it makes.

    Before:  x -> MatMul(W) -> Add(b) -> Mul(g) -> y      g: one number, or one for each column of W
    After:   x -> MatMul(W * g) -> Add(b * g) -> y

    Before:  x -> MatMul(W) -> Add(b) -> Reshape -> Transpose -> MatMul(k) -> Div(8) -> Softmax
    After:   x -> MatMul(W / 8) -> Add(b / 8) -> Reshape -> Transpose -> MatMul(k) -> Softmax

    So without the Add, for Gemm(W, b), transposed or not, and for what the second factor of a product comes from. A
    number for each output ends the blocks of ConvNeXt, CaiT and DINOv2, one for products is attention's; each takes
    another pass over the tensor. Scales of weights are those of columns, so that rounding loses what it lost. Left
    alone: weights that aren't constants or have other readers, what something else reads, and other shapes.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for scale in [node for node in graph.nodes if node.op in ("Div", "Mul") and is_standard(node)]:
            found = _scaled(scale)
            if found is None:
                continue
            maker, factor = found
            alone = only_reader(maker, outputs) is scale
            if alone and (_fold(maker, factor, outputs) or _fold_in_front(maker, factor, outputs)):
                maker.outputs, scale.outputs = list(scale.outputs), []
                scale.inputs.clear()
                changed = True
        return changed


def _scaled(node: gs.Node) -> tuple[gs.Node, NDArray[np.float64]] | None:
    """What makes the tensor that a Mul or Div computes with constants, and the factor; None where that isn't all."""
    constants = [tensor for tensor in node.inputs if isinstance(tensor, gs.Constant)]
    makers = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
    if len(constants) != 1 or len(makers) != 1:
        return None
    factor = constants[0].values.astype(np.float64)
    if node.op == "Mul":
        return makers[0], factor
    return (makers[0], 1 / factor) if constants[0] is node.inputs[1] and factor.all() else None


def _fold_in_front(product: gs.Node, factor: NDArray[np.float64], outputs: set[int]) -> bool:
    """Multiply what one of two factors comes from, one linear layer that nothing else reads, by a number."""
    if product.op != "MatMul" or not is_standard(product) or factor.size > 1 or factor.ndim > 1:
        return False
    for tensor in product.inputs:
        reader = product
        while tensor.inputs and only_reader(tensor.inputs[0], outputs) is reader:
            maker: gs.Node = tensor.inputs[0]
            if maker.op not in _RESHAPING or not is_standard(maker):
                if _fold(maker, factor, outputs):
                    return True
                break
            reader, tensor = maker, maker.inputs[0]
    return False


def _fold(last: gs.Node, factor: NDArray[np.float64], outputs: set[int]) -> bool:
    """Multiply the parameters of the layer that ends with `last` by `factor`, if it is one that they can take."""
    layer, place = biased(last) or (last, None)
    if layer.op not in ("Gemm", "MatMul") or not is_standard(layer):
        return False
    if (layer is not last and only_reader(layer, outputs) is not last) or (place is None and len(layer.inputs) > 2):
        return False
    weight = layer.inputs[1]
    if not isinstance(weight, gs.Constant) or len(weight.outputs) != 1 or len(weight.shape) != 2:
        return False
    if weight.dtype != np.float32:  # a quotient of integers is another number
        return False
    transposed = layer.op == "Gemm" and layer.attrs.get("transB", 0)
    made = weight.shape[0 if transposed else 1]
    if factor.shape not in ((), (1,), (made,)):
        return False
    if place is not None and tuple(last.inputs[place].shape) != (made,):
        return False
    numbers = factor.reshape(-1)
    weight.values = (weight.values * (numbers.reshape(-1, 1) if transposed else numbers)).astype(np.float32)
    if place is not None:  # other layers may share the bias, where it is all zeros
        shifts = (last.inputs[place].values * numbers).astype(np.float32)
        last.inputs[place] = gs.Constant(f"{weight.name}.bias", shifts)
    return True
