"""Computes hard sigmoids of quantized tensors on their codes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.kernels import quantizer_of
from amq_onnx.quantizer.activation_ranges import codes_below
from amq_onnx.quantizer.encoding import Encoding

# By which numbers of 32 bits may be off.
_ROUNDING = 1e-6


class HardSigmoidsOnCodes(Pass):
    """Makes a Clip of codes of a hard sigmoid, by another scale and zero point for the same codes.

    Before:  codes -> DequantizeLinear(s, z) -> HardSigmoid(a, b) -> Mul
    After:   codes -> Clip(z - k, z - k + k / b) -> DequantizeLinear(a s', z - k) -> Mul

    a s' (q - z) + b is a s' (q - (z - k)) where s' = b / (a k), k and k / b whole numbers. Ranges are chosen so that s
    is such a scale (range_of_hard_sigmoid); where it was learned since, it becomes the nearest, with no code below 0.
    So a hard swish is a Clip and a QLinearMul, in a quarter of the time of the four float operators between the codes
    of two layers: onnxruntime has no integer kernel for HardSigmoid.

    Left alone: tensors without an encoding, or whose encoding isn't such a one; a second hard sigmoid of a tensor.
    Scales that were learned don't decide about it, since files of one plan have one size.

    encodings: by tensor name. stem, keys: as of InsertQDQ.
    """

    def __init__(
        self, encodings: Mapping[str, Encoding], stem: str = "amq_", keys: Mapping[str, str] | None = None
    ) -> None:
        self.encodings = encodings
        self.stem = stem
        self.keys = keys or {}

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        done: set[str] = set()
        changed = False
        for node in [node for node in graph.nodes if is_hard_sigmoid(node)]:
            alpha, beta = slope(node)
            dequantize = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
            if dequantize is None or dequantize.op != "DequantizeLinear" or len(dequantize.inputs) < 3:
                continue
            codes, scale = dequantize.inputs[:2]
            made_by = quantizer_of(codes)
            name = made_by.inputs[0].name if made_by is not None else ""
            encoding = self.encodings.get(name)
            if encoding is None or name in done or not _begins_on_a_code(encoding, alpha, beta):
                continue
            done.add(name)
            below = codes_below(float(scale.values), encoding.zero_point, alpha, beta)
            scale.values = np.asarray(beta / (alpha * below), np.float32)
            low = encoding.zero_point - below
            made = f"{self.stem}{self.keys.get(name, name)}"
            ends = [
                gs.Constant(f"{made}h{part}", np.array(code, np.uint8))
                for part, code in (("l", low), ("h", min(low + round(below / beta), 255)))
            ]
            clipped = gs.Variable(f"{made}hc", np.uint8)
            graph.nodes.append(gs.Node("Clip", "", {}, [codes, *ends], [clipped]))
            unit = gs.Constant(f"{made}hs", np.asarray(beta / below, np.float32))
            graph.nodes.append(gs.Node("DequantizeLinear", "", {}, [clipped, unit, ends[0]], list(node.outputs)))
            node.outputs.clear()
            changed = True
        return changed


def is_hard_sigmoid(node: gs.Node) -> bool:
    """True for the standard operator."""
    return node.op == "HardSigmoid" and is_standard(node)


def slope(node: gs.Node) -> tuple[float, float]:
    """alpha and beta of a HardSigmoid."""
    return float(node.attrs.get("alpha", 0.2)), float(node.attrs.get("beta", 0.5))


def _begins_on_a_code(encoding: Encoding, alpha: float, beta: float) -> bool:
    """Whether the hard sigmoid of a tensor of this encoding can be computed on its codes."""
    if encoding.signed or encoding.axis is not None or alpha <= 0 or beta <= 0:
        return False
    below = codes_below(float(encoding.scale), encoding.zero_point, alpha, beta)
    return below >= 1 and abs(beta / (alpha * float(encoding.scale)) / below - 1) < _ROUNDING
