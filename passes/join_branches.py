"""Makes one convolution of several that read one tensor and are added."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from amq_onnx.passes.base import Pass, is_standard, only_reader
from amq_onnx.passes.convolutions import bias, change, given_pads, is_changeable_conv


class JoinBranches(Pass):
    """Adds the weights of convolutions instead of what they make of one tensor.

    Before:  x -> Conv(V, 3 x 3, pads 1) -> p;  x -> Conv(W, 1 x 1) -> q;  Add(p, q) -> y
    After:   x -> Conv(V + W in the middle, 3 x 3, pads 1) -> y

    So do the authors of RepVGG, MobileOne, FastViT and RepGhost before they deploy a network that was trained with
    branches. Depthwise convolutions take x itself too, as the kernel 1; in a dense one the 1s would leave few codes to
    the other weights. Left alone: kernels that would grow beyond the larger one, dilations, weights that aren't
    constants or have other readers, and branches that something else reads.
    """

    def apply(self, graph: gs.Graph) -> bool:
        """See the class."""
        outputs = {id(tensor) for tensor in graph.outputs}
        changed = False
        for add in [node for node in graph.nodes if node.op == "Add" and is_standard(node)]:
            branches = [_branch(tensor, add, outputs) for tensor in add.inputs]
            pairs = list(zip(add.inputs, branches, strict=True))
            convs = [conv for conv in branches if conv is not None]
            convs.sort(key=lambda conv: -conv.inputs[1].values.size)
            sources = {id(tensor if conv is None else conv.inputs[0]) for tensor, conv in pairs}
            if not convs or len(sources) > 1 or add.inputs[0] is add.inputs[1]:
                continue
            first = _Kernel.of(convs[0])
            second = _Kernel.of(convs[1]) if len(convs) == 2 else _Kernel.identity(first)
            joined = first + second if first is not None and second is not None else None
            if joined is None:
                continue
            joined.write(convs[0])
            convs[0].outputs = list(add.outputs)
            for node in (add, *convs[1:]):
                node.inputs.clear()
                node.outputs.clear()
            changed = True
        return changed


@dataclass(frozen=True, eq=False)
class _Kernel:
    """Weights [outputs, inputs of a group, *kernel], bias [outputs], and where the kernel begins and ends around each
    position: pads in front, and the kernel less those; less: how much smaller than its input the output is."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    groups: int
    strides: tuple[int, ...]
    before: tuple[int, ...]
    less: tuple[int, ...]

    @classmethod
    def of(cls, conv: gs.Node) -> _Kernel | None:
        """That of a Conv, None of one whose kernel can't be added to others."""
        weight = conv.inputs[1].values.astype(np.float64)
        axes, kernel = weight.ndim - 2, weight.shape[2:]
        if any(step != 1 for step in conv.attrs.get("dilations", ())):
            return None
        pads = given_pads(conv, axes)
        if pads is None:
            return None
        before, after = tuple(pads[:axes]), pads[axes:]
        less = tuple(size - front - back for size, front, back in zip(kernel, before, after, strict=True))
        strides = tuple(conv.attrs.get("strides", [1] * axes))
        return cls(weight, bias(conv), int(conv.attrs.get("group", 1)), strides, before, less)

    @classmethod
    def identity(cls, other: _Kernel | None) -> _Kernel | None:
        """x itself, beside a depthwise kernel whose output has the shape of x."""
        if other is None or not (other.groups == len(other.weight) and other.weight.shape[1] == 1):
            return None
        if set(other.strides) != {1} or set(other.less) != {1}:
            return None
        ones = np.ones((len(other.weight), *[1] * (other.weight.ndim - 1)))
        return cls(ones, np.zeros(len(ones)), other.groups, other.strides, tuple(0 for _ in other.less), other.less)

    def __add__(self, other: _Kernel) -> _Kernel | None:
        """Both in one, None where that is none of the two sizes or they differ in what else they do."""
        mine, theirs = (each.weight.shape for each in (self, other))
        alike = (self.groups, self.strides, self.less) == (other.groups, other.strides, other.less)
        if not alike or mine[:2] != theirs[:2]:
            return None
        before = tuple(map(max, self.before, other.before))
        parts = []
        for each in (self, other):
            ends = [
                (front - own, max(a - x, b - y) - (size - own))
                for front, own, size, a, x, b, y in zip(
                    before, each.before, each.weight.shape[2:], mine[2:], self.before, theirs[2:], other.before,
                    strict=True,
                )
            ]  # fmt: skip
            parts.append(np.pad(each.weight, [(0, 0), (0, 0), *ends]))
        if parts[0].shape not in (mine, theirs):
            return None
        weight, bias = parts[0] + parts[1], self.bias + other.bias
        return _Kernel(weight, bias, self.groups, self.strides, before, self.less)

    def write(self, conv: gs.Node) -> None:
        """Make it that of `conv`."""
        kernel = self.weight.shape[2:]
        after = (size - front - less for size, front, less in zip(kernel, self.before, self.less, strict=True))
        conv.attrs["kernel_shape"] = list(kernel)
        conv.attrs["pads"] = [*self.before, *after]
        conv.attrs.pop("auto_pad", None)
        change(conv, self.weight, self.bias)


def _branch(tensor: gs.Tensor, add: gs.Node, outputs: set[int]) -> gs.Node | None:
    """The Conv that makes `tensor` for `add` alone, None where it's made otherwise."""
    conv = tensor.inputs[0] if tensor.inputs else None
    return conv if conv is not None and is_changeable_conv(conv) and only_reader(conv, outputs) is add else None
