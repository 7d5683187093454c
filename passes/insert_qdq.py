"""Inserts QuantizeLinear and DequantizeLinear where a plan says so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.errors import ModelError
from amq_onnx.passes.base import Pass
from amq_onnx.quantizer.encoding import Encoding


class InsertQDQ(Pass):
    """Quantizes and dequantizes each named tensor for all nodes that read it.

    Before:  x ------------------------------------------------------> Conv
             W (float initializer) ----------------------------------> Conv

    After:   x -> QuantizeLinear -> [Clip] -> DequantizeLinear -> Conv      (codes in uint8)
             W -> QuantizeLinear -> [Clip] -> DequantizeLinear -> Conv      (codes in int8, W still float)
             W -> QuantizeLinear -> Max -> Min -> DequantizeLinear -> Conv  (where channels have widths of their own)

    The Clip bounds the codes where the encoding has fewer bits than their type: 8, or 16 above 8 bits. It takes scalars
    only, so that Max(codes, low) and Min(..., high), with bounds [.., channels, 1, ..], take its place where channels
    differ in width. Whoever wants the bounds of a tensor's codes reads them off these second inputs. The float
    initializers stay, so that the graph can be trained; `Pack` turns them into codes. A tensor that is also a graph
    output keeps its float value there; readers inside subgraphs read the quantized one.

    encodings: by tensor name. stem: what the names made here start with. keys: by tensor name, a short part
    of the names made for it (the tensor's name itself if absent).
    """

    def __init__(
        self, encodings: Mapping[str, Encoding], stem: str = "amq_", keys: Mapping[str, str] | None = None
    ) -> None:
        self.encodings = encodings
        self.stem = stem
        self.keys = keys or {}
        self._constants: dict[str, gs.Constant] = {}

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        self._constants = {}
        tensors = graph.tensors()
        for inner in graph.subgraphs(recursive=True):  # a constant that only subgraphs read is known to them alone
            for name, tensor in inner.tensors().items():
                if isinstance(tensor, gs.Constant):
                    tensors.setdefault(name, tensor)
        changed = False
        for name, encoding in self.encodings.items():
            if name not in tensors:
                raise ModelError(f"the plan names tensor '{name}', which the graph doesn't have")
            if _is_quantized(tensors[name]):
                continue
            self._insert(graph, tensors[name], encoding, self.stem + self.keys.get(name, name))
            changed = True
        return changed

    def _insert(self, graph: gs.Graph, tensor: gs.Tensor, encoding: Encoding, name: str) -> None:
        wide = encoding.bits > 8
        code_type = (np.int16 if wide else np.int8) if encoding.signed else (np.uint16 if wide else np.uint8)
        scale = gs.Constant(f"{name}s", np.asarray(encoding.scale, np.float32))
        if encoding.zero_point == 0 and encoding.axis is None and not encoding.signed:
            zero = self._shared_code(0, code_type)
        else:  # per axis, the zero point has the scale's shape; weights each need their own (OnnxRuntimeTarget)
            zero = gs.Constant(f"{name}z", np.full(np.shape(encoding.scale), encoding.zero_point, code_type))
        parameters = [scale, zero]
        attributes = {} if encoding.axis is None else {"axis": encoding.axis}
        readers = list(tensor.outputs)
        codes = gs.Variable(f"{name}q", code_type)
        quantize = gs.Node("QuantizeLinear", "", dict(attributes), [tensor, *parameters], [codes])
        nodes = [quantize]
        if encoding.widths is not None:
            for operator, part, bound in zip(
                ("Max", "Min"), ("lo", "hi"), encoding.code_bounds(len(tensor.shape)), strict=True
            ):
                bounded = gs.Variable(f"{name}{part}c", code_type)
                end = gs.Constant(f"{name}{part}", bound.astype(code_type))
                nodes.append(gs.Node(operator, "", {}, [codes, end], [bounded]))
                codes = bounded
        elif encoding.bits < 8 * np.dtype(code_type).itemsize:
            low, high = encoding.code_range
            bounds = [self._shared_code(low, code_type), self._shared_code(high, code_type)]
            clipped = gs.Variable(f"{name}c", code_type)
            nodes.append(gs.Node("Clip", "", {}, [codes, *bounds], [clipped]))
            codes = clipped
        # The rank of a weight is needed by passes that write its scale in another way.
        real = gs.Variable(f"{name}d", np.float32, tensor.shape if isinstance(tensor, gs.Constant) else None)
        nodes.append(gs.Node("DequantizeLinear", "", dict(attributes), [codes, *parameters], [real]))
        for reader in readers:
            for index, read in enumerate(reader.inputs):
                if read is tensor:
                    reader.inputs[index] = real
        graph.nodes.extend(nodes)

    def _shared_code(self, value: int, code_type: type[np.integer]) -> gs.Constant:
        """A scalar code that all sites share: c15 is the uint8 number 15, jm8 the int8 number -8."""
        kind = {np.int8: "j", np.uint8: "c", np.int16: "k", np.uint16: "h"}[code_type]
        name = f"{self.stem}{kind}{value}".replace("-", "m")
        if name not in self._constants:
            self._constants[name] = gs.Constant(name, np.array(value, code_type))
        return self._constants[name]


def _is_quantized(tensor: gs.Tensor) -> bool:
    return len(tensor.outputs) >= 1 and any(node.op == "QuantizeLinear" for node in tensor.outputs)
