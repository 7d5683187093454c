"""Makes one node of a hard sigmoid that is written out, and two of a hard swish."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from amq_onnx.passes.affine import number_of, with_number
from amq_onnx.passes.base import Pass, is_standard, only_reader

# A factor that was written as 0.16666667 is that of Div(6).
_TOLERANCE = 1e-6


class JoinHardSigmoids(Pass):
    """Makes a HardSigmoid of its four steps, in the activation of MobileNetV3 (hard swish) too.

    Before:  x -> Add(a) -> Clip(0, m) -> Div(m) -> y         x -> Add(a) -> Clip(0, m) -> Mul(z) -> Div(m) -> y
    After:   x -> HardSigmoid(1/m, a/m) -> y                  x -> HardSigmoid(1/m, a/m) -> Mul(z) -> y

    So for Mul(1/m). Each step reads and writes all of the tensor once more, in float between two quantized layers. Left
    alone: other bounds, other factors, constants of more than one number, and steps that something else reads.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for clip in [node for node in graph.nodes if node.op == "Clip"]:
            found = _steps(clip, outputs)
            if found is None:
                continue
            source, shift, most, product, division = found
            attributes = {"alpha": 1 / most, "beta": shift / most}
            result = division.outputs[0]
            division.outputs.clear()
            joined = result
            if product is not None:
                joined = clip.outputs[0]
                product.outputs = [result]
            clip.outputs.clear()
            graph.nodes.append(gs.Node("HardSigmoid", "", attributes, [source], [joined]))
            changed = True
        return changed


class SplitHardSwishes(Pass):
    """Writes a hard swish as its hard sigmoid and the product.

    Before:  x -> HardSwish -> y
    After:   x -> HardSigmoid(1/6, 1/2) -> Mul(x) -> y

    It is the operator's definition (ONNX, HardSwish), which onnxruntime, without a kernel for it, puts in its place.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        swishes = [node for node in graph.nodes if node.op == "HardSwish" and is_standard(node)]
        for node in swishes:
            source, result = node.inputs[0], node.outputs[0]
            factor = gs.Variable(f"{result.name}_hard_sigmoid", result.dtype, result.shape)
            node.outputs.clear()
            graph.nodes.append(gs.Node("HardSigmoid", "", {"alpha": 1 / 6, "beta": 0.5}, [source], [factor]))
            graph.nodes.append(gs.Node("Mul", "", {}, [source, factor], [result]))
        return bool(swishes)


def _steps(clip: gs.Node, outputs: set[int]) -> tuple[gs.Tensor, float, float, gs.Node | None, gs.Node] | None:
    """Of a hard sigmoid around a Clip: what it is of, what is added, the upper bound, the Mul behind the Clip if there
    is one, and the node that divides."""
    if len(clip.inputs) < 3 or number_of(clip.inputs[1]) != 0.0 or not clip.inputs[0].inputs:
        return None
    most, add = number_of(clip.inputs[2]), clip.inputs[0].inputs[0]
    if most is None or most <= 0 or add.op != "Add" or only_reader(add, outputs) is None:
        return None
    source, shift = with_number(add)
    if source is None or shift is None:
        return None
    behind = only_reader(clip, outputs)
    if behind is None:
        return None
    if _divides(behind, clip.outputs[0], most):
        return source, shift, most, None, behind
    last = only_reader(behind, outputs) if behind.op == "Mul" else None
    if last is not None and _divides(last, behind.outputs[0], most):
        return source, shift, most, behind, last
    return None


def _divides(node: gs.Node, tensor: gs.Tensor, by: float) -> bool:
    """Whether all that `node` does is to divide `tensor` by a number."""
    read, number = with_number(node)
    if read is not tensor or number is None:
        return False
    if node.op == "Div":
        return node.inputs[0] is tensor and abs(number / by - 1) < _TOLERANCE
    return node.op == "Mul" and abs(number * by - 1) < _TOLERANCE
