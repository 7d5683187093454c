"""Weights and biases of convolutions that a pass may change."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.base import is_standard


def all_constant(tensors: Iterable[gs.Tensor]) -> bool:
    """True where each is a constant."""
    return all(isinstance(tensor, gs.Constant) for tensor in tensors)


def changeable(conv: gs.Node) -> bool:
    """Whether weights and bias are constants that only this Conv or ConvTranspose reads."""
    parameters = conv.inputs[1:]
    return all_constant(parameters) and all(len(tensor.outputs) == 1 for tensor in parameters)


def is_changeable_conv(node: gs.Node) -> bool:
    """True for a standard Conv whose weights and bias are its own constants."""
    return node.op == "Conv" and is_standard(node) and changeable(node)


def channels(conv: gs.Node) -> int:
    """How many a Conv or ConvTranspose makes."""
    shape = conv.inputs[1].shape
    return int(shape[0] if conv.op == "Conv" else shape[1] * conv.attrs.get("group", 1))


def bias(conv: gs.Node) -> NDArray[np.float64]:
    """The bias, zeros where there is none, [channels]."""
    return conv.inputs[2].values.astype(np.float64) if len(conv.inputs) > 2 else np.zeros(channels(conv))


def change(conv: gs.Node, weight: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    """Give a convolution another weight and bias, in the type of its weight."""
    held = conv.inputs[1]
    dtype = held.values.dtype
    # The bias takes the weight's name as its stem: the other constants' names say nothing of the convolution.
    name = conv.inputs[2].name if len(conv.inputs) > 2 else f"{held.name}.bias"
    held.values = weight.astype(dtype)
    conv.inputs = [conv.inputs[0], held, gs.Constant(name, shift.astype(dtype))]


def pads(conv: gs.Node) -> bool:
    """Whether it adds zeros around what it reads."""
    ends = given_pads(conv, len(conv.inputs[1].shape) - 2)
    return ends is None or any(ends)


def given_pads(window: gs.Node, rank: int) -> list[int] | None:
    """What a convolution or pooling over `rank` dimensions pads, in front of each and behind each; None where sizes
    decide (`auto_pad`)."""
    if window.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    return list(window.attrs.get("pads", [0] * 2 * rank))
