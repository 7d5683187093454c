"""Which nodes onnxruntime runs on integer kernels, by what stands around them in a graph with Q and DQ."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import is_standard

# Layers that have integer kernels.
INTEGER = frozenset({"Conv", "Gemm", "MatMul"})
# Layers that can have a bias, their third input.
WITH_BIAS = frozenset({"Conv", "ConvTranspose", "Gemm"})
# Operators that the quantizer behind them absorbs: their input needs no encoding of its own.
ABSORBED = frozenset({"Clip", "Relu"})
# Operators that InsertQDQ bounds codes with.
CODE_BOUNDS = frozenset({"Clip", "Max", "Min"})


def is_integer(node: gs.Node) -> bool:
    """True for a Conv, Gemm or MatMul of two dequantized tensors; Conv must be quantized behind it as well.

    onnxruntime fuses DQ, DQ -> Conv -> Q into QLinearConv, and DQ, DQ -> MatMul into MatMulIntegerToFloat (Gemm
    into QGemm) whatever reads it but a Relu or Clip that no quantizer reads (MaxForRelu). Without that, every DQ of a
    constant is computed anew at each run.
    """
    if node.op not in INTEGER or not is_standard(node):
        return False
    if not all(tensor.inputs and tensor.inputs[0].op == "DequantizeLinear" for tensor in node.inputs[:2]):
        return False
    if node.op != "Conv":
        return True
    readers = behind_absorbed(node.outputs[0]).outputs
    return bool(readers) and all(reader.op == "QuantizeLinear" for reader in readers)


def integer_convolutions(graph: gs.Graph) -> Iterator[tuple[gs.Node, int, list[int]]]:
    """Conv nodes on integer kernels, with constant codes: node, groups, shape of the weight.

    Nodes may be added to the graph on the way.
    """
    for node in list(graph.nodes):
        if node.op != "Conv" or not is_integer(node) or not is_constant(node.inputs[1].inputs[0].inputs[0]):
            continue
        shape = node.inputs[1].shape
        if shape is not None and all(isinstance(size, int) for size in shape):
            yield node, int(node.attrs.get("group", 1)), list(shape)


def is_between_codes(node: gs.Node, outputs: set[int]) -> bool:
    """True where the first input of `node` is dequantized and nothing but quantizers reads its output, see both below.
    outputs: ids of the graph's outputs."""
    return is_dequantized(node.inputs[0]) and is_quantized(node.outputs[0], outputs)


def is_dequantized(tensor: gs.Tensor) -> bool:
    """True for what a DequantizeLinear makes, with one scale and a zero point of uint8."""
    return bool(tensor.inputs) and tensor.inputs[0].op == "DequantizeLinear" and _has_code(tensor.inputs[0])


def is_quantized(tensor: gs.Tensor, outputs: set[int]) -> bool:
    """True where nothing but quantizers reads `tensor`, each with one scale and a zero point of uint8."""
    return id(tensor) not in outputs and all(
        reader.op == "QuantizeLinear" and _has_code(reader) for reader in tensor.outputs
    )


def quantizer_of(codes: gs.Tensor, passes: Callable[[gs.Node], bool] = lambda node: False) -> gs.Node | None:
    """The QuantizeLinear that makes `codes`, in front of their bounds and of nodes that `passes`; None for floats."""
    while codes.inputs and (codes.inputs[0].op in CODE_BOUNDS or passes(codes.inputs[0])):
        codes = codes.inputs[0].inputs[0]
    made = codes.inputs[0] if codes.inputs else None
    return made if made is not None and made.op == "QuantizeLinear" else None


def _has_code(quantizer: gs.Node) -> bool:
    """True for one scale and a zero point of uint8."""
    parameters = quantizer.inputs[1:3]
    if len(parameters) < 2 or not all(isinstance(each, gs.Constant) for each in parameters):
        return False
    scale, zero_point = (each.values for each in parameters)
    return bool(scale.ndim == 0 and zero_point.dtype == np.uint8)


def biased(node: gs.Node) -> tuple[gs.Node, int] | None:
    """The Conv, Gemm or MatMul to whose products `node` adds a constant, itself or an Add behind a MatMul that alone
    reads it, and which of `node`'s inputs that constant is. None where it adds none."""
    if node.op in WITH_BIAS:
        return (node, 2) if len(node.inputs) > 2 and isinstance(node.inputs[2], gs.Constant) else None
    if node.op != "Add":
        return None
    for place, other in ((1, node.inputs[0]), (0, node.inputs[1])):
        made = other.inputs[0] if other.inputs else None
        if isinstance(node.inputs[place], gs.Constant) and made is not None and made.op == "MatMul":
            return (made, place) if len(other.outputs) == 1 else None
    return None


def behind_absorbed(tensor: gs.Tensor, stops: Collection[int] = ()) -> gs.Tensor:
    """The tensor that a quantizer behind a layer reads: behind a Relu or Clip that alone reads the layer's output.

    stops: ids of tensors to go no further than.
    """
    while id(tensor) not in stops and len(tensor.outputs) == 1 and tensor.outputs[0].op in ABSORBED:
        tensor = tensor.outputs[0].outputs[0]
    return tensor


def maker(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes what a quantizer reads as `tensor`: in front of each Relu or Clip that it absorbs; None for
    an input of the graph or a constant."""
    made = tensor.inputs
    while made and made[0].op in ABSORBED:
        made = made[0].inputs[0].inputs
    return made[0] if made else None


def is_constant(tensor: gs.Tensor) -> bool:
    """True for what is computed from constants alone, which runtimes do once, at load."""
    waiting, seen = [tensor], {id(tensor)}
    while waiting:
        current = waiting.pop()
        if isinstance(current, gs.Constant) or not current.name:
            continue
        if not current.inputs or current.inputs[0].op == "DequantizeLinear":
            return False
        for read in current.inputs[0].inputs:
            if id(read) not in seen:
                seen.add(id(read))
                waiting.append(read)
    return True
