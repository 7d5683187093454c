"""Lets a MaxPool pad for itself."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard
from amq_onnx.passes.convolutions import given_pads

_LOWEST = np.finfo(np.float32).min


class MaxPoolPads(Pass):
    """Lets the MaxPools that alone read what a Pad has put around an image do that themselves.

    Before:  x -> Pad(pads, -inf) -> MaxPool(k x k) -> y        or the lowest float
    After:   x -> MaxPool(k x k, pads) -> y

    A MaxPool's own padding is never the largest, which infinity is for in models from TensorFlow. No range holds that,
    and no code, while a MaxPool moves codes. Left alone: other numbers, pads of other dimensions or below 0, pads that
    are no less than the kernel, which no runtime takes, pads by name of their axes, and pools that round sizes up.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for node in [node for node in graph.nodes if node.op == "Pad" and is_standard(node)]:
            made, added = node.outputs[0], _added(node)
            pools = list(made.outputs)
            if added is None or id(made) in outputs or not pools or not all(_together(pool, added) for pool in pools):
                continue
            for pool in pools:
                pool.attrs["pads"] = _together(pool, added)
                pool.inputs[0] = node.inputs[0]
            changed = True
        return changed


def _added(pad: gs.Node) -> list[int] | None:
    """What a Pad puts in front of and behind the spatial dimensions, if it is as low as can be."""
    if pad.attrs.get("mode", "constant") != "constant" or len(pad.inputs) != 3:
        return None
    pads, fill = pad.inputs[1:]
    if not isinstance(pads, gs.Constant) or not isinstance(fill, gs.Constant) or fill.values.item() > _LOWEST:
        return None
    ends = pads.values.reshape(2, -1)
    return None if ends[:, :2].any() or ends.min() < 0 else [int(end) for end in ends[:, 2:].ravel()]


def _together(pool: gs.Node, added: list[int]) -> list[int] | None:
    """What a MaxPool pads and `added`; None of what isn't one that can pad as much."""
    if pool.op != "MaxPool" or not is_standard(pool) or len(pool.outputs) != 1 or pool.attrs.get("ceil_mode", 0):
        return None
    kernel = pool.attrs["kernel_shape"]
    own = given_pads(pool, len(kernel))
    if own is None or len(own) != len(added):
        return None
    both = [one + other for one, other in zip(own, added, strict=True)]
    return both if all(size > end for size, end in zip([*kernel, *kernel], both, strict=True)) else None
