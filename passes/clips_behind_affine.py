"""Applies a factor and a shift in front of a Relu or Clip instead of behind."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.affine import affine_step
from amq_onnx.passes.base import Pass, only_reader
from amq_onnx.passes.clips_on_codes import clip_bounds
from amq_onnx.passes.fold_affine import takes_affine


class ClipsBehindAffine(Pass):
    """Lets a convolution in front of a Relu or Clip take the factor and the shift behind it.

    Before:  x -> Conv -> Clip(a, b) -> Mul(k) -> Add(c) -> y               k > 0; a Relu: a = 0, no b
    After:   x -> Conv -> Mul(k) -> Add(c) -> Clip(k a + c, k b + c) -> y

    So for Div and Sub; a Relu stays one where only a factor goes in front of it. FoldAffine then does the rest. In
    networks such as HGNetV2 such a pair stands behind every Relu, in float between the codes of two convolutions. Left
    alone: nodes that something else reads, and arithmetic that the convolutions behind it take (FoldAffineForward).
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for clip in list(graph.nodes):
            made = clip.inputs[0].inputs[0] if clip.inputs and clip.inputs[0].inputs else None
            if clip_bounds(clip) is None or made is None or made.op not in ("Conv", "ConvTranspose"):
                continue
            if only_reader(made, outputs) is None:
                continue
            while (step := affine_step(only_reader(clip, outputs))) is not None and not _is_taken(clip, outputs):
                clip = _swapped(graph, clip, step.nodes[0], step.factor, step.shift)
                changed = True
        return changed


def _is_taken(clip: gs.Node, outputs: set[int]) -> bool:
    """Whether all the arithmetic behind `clip` goes into the convolutions behind that."""
    node = clip
    while affine_step(behind := only_reader(node, outputs)) is not None:
        assert behind is not None
        node = behind
    return id(node.outputs[0]) not in outputs and takes_affine(node.outputs[0])


def _swapped(graph: gs.Graph, clip: gs.Node, step: gs.Node, factor: float, shift: float) -> gs.Node:
    """The node in place of `clip`, behind `step`."""
    bounds = clip_bounds(clip)
    assert bounds is not None
    low, high = (factor * bound + shift for bound in bounds)
    source, between, result = clip.inputs[0], clip.outputs[0], step.outputs[0]
    step.inputs = [source if read is between else read for read in step.inputs]
    step.outputs = [between]
    clip.outputs.clear()
    clip.inputs.clear()
    if low == 0.0 and np.isinf(high):
        moved = gs.Node("Relu", "", {}, [between], [result])
    else:
        ends = [
            gs.Constant(f"{result.name}_{part}", np.asarray(bound, np.float32)) if np.isfinite(bound) else None
            for part, bound in (("least", low), ("most", high))
        ]
        inputs = [between, *(gs.Variable.empty() if end is None else end for end in ends)]
        moved = gs.Node("Clip", "", {}, inputs[: 3 if ends[1] is not None else 2], [result])
    graph.nodes.append(moved)
    return moved
