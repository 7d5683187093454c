"""Lets a MaxPool pad for itself."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from amq_onnx.passes.base import Pass, is_standard

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
            if added is None or id(made) in outputs or not pools or not all(_takes(pool, added) for pool in pools):
                continue
            for pool in pools:
                pool.attrs["pads"] = [own + more for own, more in zip(_pads(pool), added, strict=True)]
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


def _takes(pool: gs.Node, added: list[int]) -> bool:
    if pool.op != "MaxPool" or not is_standard(pool) or len(pool.outputs) != 1 or pool.attrs.get("ceil_mode", 0):
        return False
    kernel = pool.attrs["kernel_shape"]
    if pool.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or 2 * len(kernel) != len(added):
        return False
    return all(own + more < size for own, more, size in zip(_pads(pool), added, [*kernel, *kernel], strict=True))


def _pads(pool: gs.Node) -> list[int]:
    return list(pool.attrs.get("pads", [0] * 2 * len(pool.attrs["kernel_shape"])))
