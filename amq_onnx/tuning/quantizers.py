"""What can be trained in a simulated graph: codes and scales of weights, scales of activations, biases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from amq_onnx.passes.absorb_affine import absorbed
from amq_onnx.passes.affine import affine

_BOUNDS = ("Clip", "Max", "Min")
# With as many codes, the rounding of an activation is lost in that of the weights.
_FINE_CODES = 128


@dataclass(frozen=True, eq=False)
class Quantizer:
    """QuantizeLinear of one tensor, with what bounds its codes and what dequantizes them.

    tensor: the float tensor, a weight or an activation. codes: the tensor of its codes, behind the bounds. scale: the
    initializer with its scale or scales; axis: along which they run, None for one scale. low, high: smallest and
    largest code, less the zero point; for codes bounded channel by channel, arrays that broadcast against the tensor.
    limit: the largest scale with which the codes still imply the Clip that makes the tensor, so that it can be dropped
    in front of them; infinite where there is none. fixed: whether the scale has to stay, since a number that was added
    to the tensor is a whole number of its steps (AbsorbAffine).
    """

    tensor: str
    codes: str
    scale: str
    axis: int | None
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    limit: float = math.inf
    fixed: bool = False

    @property
    def narrow(self) -> bool:
        """True where steps are so wide that outputs depend on how they are chosen: below 7 bits."""
        return float(self.high.max() - self.low.min()) + 1 < _FINE_CODES


def find_quantizers(model: onnx.ModelProto) -> tuple[dict[str, Quantizer], dict[str, Quantizer]]:
    """Quantizers of the weights and of the activations of a simulated graph, by the tensor that each reads."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    clips = {node.output[0]: node for node in model.graph.node if node.op_type == "Clip"}
    fixed = {
        node.inputs[0].name
        for node in gs.import_onnx(model).nodes
        if absorbed(node) is not None and affine(node.inputs[0]).shift
    }
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights: dict[str, Quantizer] = {}
    activations: dict[str, Quantizer] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            found = _quantizer(node, constants, readers)
            if found.tensor in clips:
                found = replace(found, limit=_limit(found, clips[found.tensor], constants))
            if found.tensor in fixed:
                found = replace(found, fixed=True)
            (weights if found.tensor in constants else activations)[found.tensor] = found
    return weights, activations


def _quantizer(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], readers: Mapping[str, list[onnx.NodeProto]]
) -> Quantizer:
    zero_point = numpy_helper.to_array(constants[node.input[2]])
    kind = np.iinfo(zero_point.dtype)
    low, high = np.asarray(float(kind.min), np.float32), np.asarray(float(kind.max), np.float32)
    codes = node.output[0]
    while (bound := _bound(codes, readers)) is not None:
        limits = [numpy_helper.to_array(constants[name]).astype(np.float32) for name in bound.input[1:]]
        if bound.op_type != "Min":
            low = np.maximum(low, limits[0])
        if bound.op_type != "Max":
            high = np.minimum(high, limits[-1])
        codes = bound.output[0]
    scale = constants[node.input[1]]
    axis = next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 1) if scale.dims else None
    zero = zero_point.reshape(-1)[0].astype(np.float32)
    return Quantizer(
        node.input[0], codes, scale.name, axis, np.asarray(low - zero, np.float32), np.asarray(high - zero, np.float32)
    )


def _limit(quantizer: Quantizer, clip: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> float:
    """The largest scale with which those bounds of `clip` are still rounded to the last codes that are now."""
    limit, scale = math.inf, float(numpy_helper.to_array(constants[quantizer.scale]))
    for name, end in zip(clip.input[1:], (quantizer.low, quantizer.high), strict=False):
        if name in constants and float(end):
            reach = float(numpy_helper.to_array(constants[name])) / (float(end) - math.copysign(0.5, float(end)))
            limit = min(limit, reach) if reach >= scale else limit
    # A little less, since quotients are rounded.
    return limit * (1 - 1e-6)


def _bound(codes: str, readers: Mapping[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
    """The node that alone reads `codes` and only bounds them."""
    found = readers.get(codes, [])
    return found[0] if len(found) == 1 and found[0].op_type in _BOUNDS and found[0].input[0] == codes else None


def find_biases(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Float constants that layers add to their outputs, a number a channel: biases, and what is added to a MatMul's;
    for each, the tensors that are made with it."""
    constants = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims)
    }
    products = {node.output[0] for node in model.graph.node if node.op_type == "MatMul"}
    found: dict[str, tuple[str, ...]] = {}
    for node in model.graph.node:
        names: list[str] = []
        if node.op_type in ("Conv", "ConvTranspose", "Gemm"):
            names = list(node.input[2:3])
        elif node.op_type == "Add" and not products.isdisjoint(node.input):
            names = list(node.input)
        for name in names:
            if name in constants:
                found[name] = (*found.get(name, ()), node.output[0])
    return found


def along(axis: int | None, scale: Tensor, values: Tensor) -> Tensor:
    """A scale, or the scales along `axis`, shaped to broadcast against `values`."""
    if axis is None:
        return scale.reshape(())
    sizes = [1] * values.ndim
    sizes[axis] = -1
    return scale.reshape(sizes)


def shifted_scale(quantizer: Quantizer, scale: Tensor, shift: Tensor) -> Tensor:
    """`scale` times e to the power of `shift`, no larger than its limit."""
    return (scale * torch.exp(shift)).clamp(max=quantizer.limit)
