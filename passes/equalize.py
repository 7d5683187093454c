"""Evens out the channels between two layers."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.base import Pass, is_standard

# f(s x) = s f(x) for every s > 0, channel by channel, whatever the attributes.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
# Channels between two layers settle after a few rounds; layers in a row wait for one another.
_ROUNDS = 20


class EqualizeChannels(Pass):
    """Moves factors of channels from a layer's outputs to the inputs of the layer behind (cross-layer equalization).

    Before:  x -> Conv(W, b) -> Relu -> [depthwise Conv(D, c)] -> Conv(V) -> y
    After:   x -> Conv(W / s, b / s) -> Relu -> [depthwise Conv(D, c / s)] -> Conv(V * s) -> y

    s is one power of two a channel, so that every number stays the same but for its exponent and the outputs are the
    same bit for bit, as long as none is denormal. Channel i takes the s nearest to sqrt(r_i / q_i), r_i the largest
    weight (or its bias) that makes it and q_i the largest weight that reads it, over the median of all channels (Nagel
    et al. 2019, arXiv 1906.04721, equation 11): their ranges become alike, and one scale serves the tensor better, and
    each channel of V.

    Between the two may stand any number of Relu, LeakyRelu, PRelu, pooling and depthwise Conv nodes, and a Flatten.
    Left alone: tensors with several readers or that are graph outputs; Clip and others that know a size; weights and
    biases that aren't float32 constants or have other readers; Gemm with factors; layers in groups at either end, but
    for depthwise ones in front.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        captured = {tensor.name for inner in graph.subgraphs(recursive=True) for tensor in inner.tensors().values()}
        pairs = [found for node in graph.nodes if (found := _pair(node, outputs, captured)) is not None]
        changed = False
        for _ in range(_ROUNDS):
            settled = True
            for first, between, last in pairs:
                factors = _factors(first, last)
                if (factors != 1).any():
                    _divide(first, factors)
                    for node in between:
                        _divide_bias(node, factors)
                    _multiply_inputs(last, factors)
                    settled, changed = False, True
            if settled:
                break
        return changed


def _pair(first: gs.Node, outputs: set[int], captured: set[str]) -> tuple[gs.Node, list[gs.Node], gs.Node] | None:
    """A layer, the depthwise ones behind it and the layer that reads its channels, if they can be evened out."""
    if not _own_constants(first, captured) or (first.attrs.get("group", 1) != 1 and not _is_depthwise(first)):
        return None
    between: list[gs.Node] = []
    node = first
    while True:
        tensor = node.outputs[0]
        if len(node.outputs) != 1 or id(tensor) in outputs or tensor.name in captured or len(tensor.outputs) != 1:
            return None
        behind = tensor.outputs[0]
        if behind.inputs[0] is not tensor or any(read is tensor for read in behind.inputs[1:]):
            return None
        if behind.op in _HOMOGENEOUS or (behind.op == "Flatten" and behind.attrs.get("axis", 1) == 1):
            node = behind
        elif _own_constants(behind, captured) and _is_depthwise(behind):
            between.append(behind)
            node = behind
        elif _own_constants(behind, captured) and behind.attrs.get("group", 1) == 1:
            return (first, between, behind) if _inputs(behind).shape[1] % _outputs(first).shape[0] == 0 else None
        else:
            return None


def _own_constants(node: gs.Node, captured: set[str]) -> bool:
    """True for a Conv or plain Gemm whose weight and bias are constants of its own."""
    if node.op not in ("Conv", "Gemm") or not is_standard(node):
        return False
    if node.op == "Gemm" and (
        node.attrs.get("alpha", 1.0) != 1 or node.attrs.get("beta", 1.0) != 1 or node.attrs.get("transA", 0)
    ):
        return False
    parameters = [tensor for tensor in node.inputs[1:] if tensor.name]
    if not all(
        isinstance(tensor, gs.Constant)
        and tensor.dtype == np.float32
        and len(tensor.outputs) == 1
        and tensor.name not in captured
        for tensor in parameters
    ):
        return False
    # A Gemm's bias may be broadcast from fewer numbers.
    return len(parameters) == 1 or parameters[1].values.size == len(_outputs(node))


def _is_depthwise(node: gs.Node) -> bool:
    shape = node.inputs[1].shape
    return bool(node.op == "Conv" and shape[1] == 1 and node.attrs.get("group", 1) == shape[0] > 1)


def _outputs(node: gs.Node) -> NDArray[np.float32]:
    """A view of the weight as [output channels, what makes them]."""
    values = node.inputs[1].values
    if node.op == "Gemm" and not node.attrs.get("transB", 0):
        values = values.T
    return values.reshape(len(values), -1)  # type: ignore[no-any-return]


def _inputs(node: gs.Node) -> NDArray[np.float32]:
    """The weight as [what reads them, input channels, kernel], for Gemm [outputs, inputs, 1]."""
    values = node.inputs[1].values
    if node.op == "Gemm" and not node.attrs.get("transB", 0):
        values = values.T
    return values.reshape(*values.shape[:2], -1)  # type: ignore[no-any-return]


def _factors(first: gs.Node, last: gs.Node) -> NDArray[np.float32]:
    """Powers of two, [channels]; 1 for channels that nothing makes or nothing reads."""
    made = np.abs(_outputs(first)).max(1).astype(np.float64)
    if len(first.inputs) > 2 and first.inputs[2].name:
        made = np.maximum(made, np.abs(first.inputs[2].values).reshape(-1))
    read = np.abs(_inputs(last)).max(2).max(0).reshape(len(made), -1).max(1).astype(np.float64)
    usable = (made > 1e-30) & (read > 1e-30)
    if not usable.any():
        return np.ones(len(made), np.float32)
    exponents = np.zeros(len(made))
    exponents[usable] = np.log2(made[usable] / read[usable]) / 2
    exponents[usable] -= np.median(exponents[usable])
    return np.exp2(np.rint(exponents)).astype(np.float32)


def _divide(node: gs.Node, factors: NDArray[np.float32]) -> None:
    values = node.inputs[1].values
    shape = [1] * values.ndim
    shape[1 if node.op == "Gemm" and not node.attrs.get("transB", 0) else 0] = -1
    node.inputs[1].values = values / factors.reshape(shape)
    _divide_bias(node, factors)


def _divide_bias(node: gs.Node, factors: NDArray[np.float32]) -> None:
    if len(node.inputs) > 2 and node.inputs[2].name:
        bias = node.inputs[2].values
        node.inputs[2].values = bias / factors.reshape(bias.shape)


def _multiply_inputs(node: gs.Node, factors: NDArray[np.float32]) -> None:
    values = node.inputs[1].values
    channels = 0 if node.op == "Gemm" and not node.attrs.get("transB", 0) else 1
    shape = [1] * values.ndim
    shape[channels] = -1
    repeated = np.repeat(factors, values.shape[channels] // len(factors))
    node.inputs[1].values = values * repeated.reshape(shape)
