"""Cuts a graph into blocks: parts that hand one tensor to the next and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import onnx

from amq_onnx.scope import names_read

# Layers that a block should have where the graph allows: with more, their errors make up for one another; with too
# many there is more to learn than the block's outputs can teach.
_LAYERS = 3


@dataclass(frozen=True)
class Block:
    """A part of a graph that is trained by itself.

    input: the one tensor that it takes from the blocks before, None for the first. outputs: the one tensor that it
    hands on; of the last block, the tensors that the network is judged by, but for those that were settled before.
    Besides, a block may read inputs of the graph, and what is computed from them without weights. weights: weights that
    it reads and no block before; shared: those that a block before reads too. tensors: the computed tensors that its
    nodes read, `input` among them. layers: float tensors inside that are computed from `weights` directly.
    """

    input: str | None
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    shared: tuple[str, ...]
    tensors: frozenset[str]
    layers: tuple[str, ...]


def find_blocks(model: onnx.ModelProto, weights: Collection[str], outputs: Sequence[str]) -> list[Block]:
    """The blocks of the main graph, in order, for the tensors `outputs` of it.

    A graph is cut where all that later nodes need, beside inputs of the graph and what follows from those without any
    weight, is one float tensor. Outputs that were computed before (the keys and values of a decoder) are left to what
    their block hands on, if that has need of all the weights that they have. Neighbouring blocks of few layers are
    joined, and parts without weights belong to the block behind them.
    """
    graph = _Graph(model, weights, outputs)
    blocks: list[Block] = []
    start: str | None = None
    known: set[str] = set()
    for end in graph.ends():
        block = graph.block(start, end, known)
        known.update(block.weights)
        start = end[0]
        if blocks and (not blocks[-1].weights or len(blocks[-1].weights) + len(block.weights) <= _LAYERS):
            before = blocks.pop()
            known.difference_update(before.weights, block.weights)
            block = graph.block(before.input, end, known)
            known.update(block.weights)
        blocks.append(block)
    if len(blocks) > 1 and not blocks[-1].weights:
        blocks[-2:] = [graph.block(blocks[-2].input, blocks[-1].outputs, known - set(blocks[-2].weights))]
    return blocks


class _Graph:
    """Nodes in order, with what each reads, subgraphs included."""

    def __init__(self, model: onnx.ModelProto, weights: Collection[str], outputs: Sequence[str]) -> None:
        graph = model.graph
        self.weights = tuple(weights)
        self.outputs = tuple(outputs)
        self.constants = {tensor.name for tensor in graph.initializer}
        self.inputs = [value.name for value in graph.input if value.name not in self.constants]
        self.reads: dict[str, tuple[str, ...]] = {}
        self.order: list[tuple[str, ...]] = []
        for node in graph.node:
            made = tuple(name for name in node.output if name)
            self.reads.update(dict.fromkeys(made, tuple(dict.fromkeys(names_read(node)))))
            self.order.append(made)
        self.floats = _float_tensors(model)
        self.varying = self._reached_from(self.inputs)
        self.weighted = self._reached_from(self.weights) & self.varying

    def ends(self) -> list[tuple[str, ...]]:
        """What each block hands on, in order: one tensor, and the last one the outputs that are not settled before."""
        needed = self._needed(self.outputs, stop=None)
        last: dict[str, int] = {}
        for index, made in enumerate(self.order):
            if any(name in needed for name in made):
                for name in self.reads.get(made[0], ()):
                    last[name] = index
        found: list[str] = []
        live: set[str] = set()
        left = dict.fromkeys(self.outputs)
        before: set[str] = set()
        for index, made in enumerate(self.order):
            live.update(name for name in made if name in self.weighted)
            before.update(name for name in made if name in left)
            live = {name for name in live if last.get(name, -1) > index}
            if len(live) == 1 and not live & left.keys():
                (name,) = live
                start = found[-1] if found else None
                if name in self.floats and name in made and self._settles(name, before, start):
                    found.append(name)
                    for settled in before:
                        del left[settled]
                    before.clear()
        return [*((name,) for name in found), tuple(left)]

    def _settles(self, cut: str, outputs: Collection[str], start: str | None) -> bool:
        """Whether `cut` has need of all the weights that are behind `outputs`, back to `start`."""
        behind = self._read(outputs, start).intersection(self.weights)
        return not behind or behind <= self._read([cut], start)

    def block(self, start: str | None, end: tuple[str, ...], known: Collection[str]) -> Block:
        """The part between two cuts; its weights are those that `known` lacks."""
        tensors = self._needed(end, stop=start)
        read = self._read(end, start)
        weights = [name for name in self.weights if name in read]
        own = tuple(name for name in weights if name not in known)
        shared = tuple(name for name in weights if name in known)
        inside = (self.floats & self.varying & tensors) - {start, *end}
        layers = tuple(
            made[0]
            for made in self.order
            if made and made[0] in inside and not set(own).isdisjoint(self.reads[made[0]])
        )
        return Block(start, end, own, shared, frozenset(read - self.constants), layers)

    def _read(self, outputs: Iterable[str], start: str | None) -> set[str]:
        """What the nodes read that compute `outputs`, back to `start`."""
        tensors = self._needed(outputs, stop=start)
        return {name for tensor in tensors if tensor != start for name in self.reads.get(tensor, ())}

    def _needed(self, outputs: Iterable[str], stop: str | None) -> set[str]:
        """`outputs` and every tensor that they are computed from, back to `stop`."""
        waiting, seen = list(outputs), set(outputs)
        while waiting:
            name = waiting.pop()
            if name == stop:
                continue
            for read in self.reads.get(name, ()):
                if read not in seen:
                    seen.add(read)
                    waiting.append(read)
        return seen

    def _reached_from(self, names: Iterable[str]) -> set[str]:
        reached = set(names)
        for made in self.order:
            if made and any(name in reached for name in self.reads[made[0]]):
                reached.update(made)
        return reached


def _float_tensors(model: onnx.ModelProto) -> set[str]:
    """Tensors that hold float numbers, as far as types are known; a prepared model has them inferred."""
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    return {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT}
