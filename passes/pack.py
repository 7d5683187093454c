"""Replaces float weights by their packed codes and biases by int32."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_graphsurgeon as gs
from onnx import numpy_helper
from onnx_graphsurgeon.ir.tensor import LazyValues

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import Pass
from amq_onnx.passes.kernels import CODE_BOUNDS, biased, is_constant, is_integer
from amq_onnx.passes.names import free_names
from amq_onnx.quantizer.affine import quantize
from amq_onnx.quantizer.encoding import Encoding
from amq_onnx.recipe import Codes, Recipe

_ENDS = {"Max": np.maximum, "Min": np.minimum}


class Pack(Pass):
    """Stores each quantized weight by its recipe.

    Before:  W (float) -> QuantizeLinear -> [Clip | Max -> Min] -> DequantizeLinear -> Conv
    After:   packed bytes (uint8) -> the recipe's nodes -> codes (int8) -> DequantizeLinear -> Conv

    Codes are what QuantizeLinear and the bounds would compute, bit for bit. Zero points, all 0, are left out where the
    recipe says so.

    recipes: by name of the weight. shared: the recipe of each key that recipes share, made once.
    """

    def __init__(self, recipes: Mapping[str, Recipe], shared: Callable[[str], Recipe]) -> None:
        self.recipes = recipes
        self.shared = shared

    def apply(self, graph: gs.Graph) -> bool:
        """See the class. Raises ModelError for a recipe whose weight isn't quantized in the graph."""
        tensors = dict(graph.tensors())
        changed = False
        for name, recipe in self.recipes.items():
            if recipe.result in tensors:
                continue  # packed by an earlier run
            quantizer = _quantizer(tensors.get(name))
            if quantizer is None:
                raise ModelError(f"weight '{name}' has no QuantizeLinear in the graph to be packed")
            bounds = _bounds(quantizer)
            codes, last = _codes(quantizer, bounds), (bounds or [quantizer])[-1].outputs[0]
            result = self._build(graph, tensors, recipe, codes)
            for reader in list(last.outputs):
                dispensable = reader.op == "DequantizeLinear" and (
                    recipe.zero_points == "left out"
                    or (recipe.zero_points == "left out for Conv" and _read_by_convs(reader))
                )
                reader.inputs = [result, reader.inputs[1]] if dispensable else [result, *reader.inputs[1:]]
            for node in (quantizer, *bounds):
                node.outputs.clear()
            changed = True
        return changed

    def _build(self, graph: gs.Graph, tensors: dict[str, gs.Tensor], recipe: Recipe, codes: Codes) -> gs.Tensor:
        for key in recipe.shared:
            shared = self.shared(key)
            if shared.result not in tensors:
                self._build(graph, tensors, shared, codes)
        for constant in recipe.constants:
            values = np.asarray(constant.values(codes), constant.dtype).reshape(constant.shape)
            tensors[constant.name] = gs.Constant(constant.name, _held(values))
        for node in recipe.nodes:
            output = gs.Variable(node.output)
            tensors[node.output] = output
            inputs = [tensors[name] for name in node.inputs]
            graph.nodes.append(gs.Node(node.op_type, "", dict(node.attributes), inputs, [output]))
        return tensors[recipe.result]


class QuantizeBiases(Pass):
    """Stores the bias of a node on an integer kernel as int32.

    Before:  b (float) ---------------------------------> Conv(x', w', b)     MatMul(x', w') -> Add(b)
    After:   b (int32) -> DequantizeLinear(s_x * s_w) --> Conv(x', w', b')    MatMul(x', w') -> Add(b')

    Its scale is the product of the scales of x' and w', computed in the graph by a Mul that the runtime folds:
    the only scale with which every version of onnxruntime fuses the node (others fuse a float bias too, or
    none). A MatMul and the Add behind it are made a Gemm before kernels are chosen: of matrices in all versions, of
    more dimensions, where all are known, since 1.21 (onnxruntime's MatMulAddFusion). With a float bias that Gemm is a
    float one that dequantizes its weight at every run, and a ViT-S takes 1.1 times the time of the float model; with an
    int32 one it is a QGemm, and takes .45. Left float: a bias that isn't a constant vector over the output channels,
    alone or behind dimensions of 1, or one too large for int32 in that unit.
    """

    def __init__(self, stem: str = "amq_") -> None:
        self.stem = stem

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        products: dict[tuple[str, str], gs.Variable] = {}
        free = free_names(graph, f"{self.stem}b")
        changed = False
        for node in list(graph.nodes):
            found = _biased(node)
            if found is None:
                continue
            place, data_scale, weight_scale = found
            bias = node.inputs[place].values.reshape(-1)
            unit = np.float32(data_scale.values) * weight_scale.values
            codes = np.rint(bias.astype(np.float64) / unit)
            if np.abs(codes).max(initial=0.0) >= 2.0**31 - 1:
                continue
            name = next(free)
            changed = True
            pair = (data_scale.name, weight_scale.name)
            if pair not in products:
                products[pair] = gs.Variable(f"{name}s")
                graph.nodes.append(gs.Node("Mul", "", {}, [data_scale, weight_scale], [products[pair]]))
            stored = gs.Constant(name, codes.astype(np.int32))
            real = gs.Variable(f"{name}d", np.float32)
            attributes = {"axis": 0} if weight_scale.values.ndim else {}
            graph.nodes.append(gs.Node("DequantizeLinear", "", attributes, [stored, products[pair]], [real]))
            node.inputs[place] = real
        return changed


def _held(values: np.ndarray) -> np.ndarray | LazyValues:
    """What onnx-graphsurgeon can hold: 4- and 2-bit integers only as an ONNX tensor."""
    return values if values.dtype.isbuiltin == 1 else LazyValues(numpy_helper.from_array(values))


def _read_by_convs(dequantize: gs.Node) -> bool:
    return {reader.op for reader in dequantize.outputs[0].outputs} == {"Conv"}


def _quantizer(weight: gs.Tensor | None) -> gs.Node | None:
    if not isinstance(weight, gs.Constant):
        return None
    return next((node for node in weight.outputs if node.op == "QuantizeLinear"), None)


def _bounds(quantizer: gs.Node) -> list[gs.Node]:
    """The nodes behind a QuantizeLinear that bound its codes."""
    found: list[gs.Node] = []
    last = quantizer
    while bound := next((node for node in last.outputs[0].outputs if node.op in CODE_BOUNDS), None):
        found.append(bound)
        last = bound
    return found


def _codes(quantizer: gs.Node, bounds: list[gs.Node]) -> Codes:
    """The codes that a QuantizeLinear and the nodes that bound them compute."""
    weight, scale, zero_point = quantizer.inputs
    kind = np.iinfo(zero_point.values.dtype)
    scales = np.asarray(scale.values, np.float32)
    axis = quantizer.attrs.get("axis", 1) if scales.ndim else None
    codes = quantize(np.asarray(weight.values, np.float32), Encoding(kind.bits, kind.min < 0, scales, axis=axis))
    for bound in bounds:
        ends = [np.asarray(end.values, np.int32) for end in bound.inputs[1:]]
        codes = np.clip(codes, *ends) if bound.op == "Clip" else _ENDS[bound.op](codes, *ends)
    return codes


def _biased(node: gs.Node) -> tuple[int, gs.Constant, gs.Constant] | None:
    """Which input of a node is a bias that can be int32, the scale of the data and the scales of the weight."""
    found = biased(node)
    if found is None:
        return None
    product, place = found
    if not is_integer(product) or (product is not node and not is_constant(product.inputs[1].inputs[0].inputs[0])):
        return None
    if product.attrs.get("beta", 1.0) != 1.0 or product.attrs.get("alpha", 1.0) != 1.0:
        return None
    bias = node.inputs[place].values
    data_scale, weight_scale = (tensor.inputs[0].inputs[1] for tensor in product.inputs[:2])
    if not isinstance(data_scale, gs.Constant) or not isinstance(weight_scale, gs.Constant):
        return None
    if bias.dtype != np.float32 or bias.ndim == 0 or bias.shape[-1] != bias.size:
        return None
    if bias.ndim > 1 and len(product.outputs[0].shape or ()) < bias.ndim:
        return None  # the sum may have more dimensions than the product
    if data_scale.values.ndim or (weight_scale.values.ndim and weight_scale.values.shape != (bias.size,)):
        return None
    return place, data_scale, weight_scale
