"""From a sensitivity table to plans and files of any budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import onnx
from numpy.typing import NDArray

from amq_onnx.allocation import Allocation, Infeasible, Solver, frontier, smallest, solve
from amq_onnx.costs import SearchSpace, search_space
from amq_onnx.errors import BudgetError
from amq_onnx.model.file import fingerprint, written_bytes
from amq_onnx.plan import Plan, corrections, rounded_to_nearest
from amq_onnx.rewriting import Prepared, lower, trainable, with_initializers
from amq_onnx.sensitivity import Sensitivity, require_same_model

# Rounds after which a correction of the bytes that plans share, or of a few bytes of the file, has settled.
_CORRECTIONS = 4


Tune = Callable[[onnx.ModelProto, onnx.ModelProto], Mapping[str, NDArray[np.float32]]]
"""Given a float graph and its quantized form, other numbers for initializers of the latter."""


@dataclass(frozen=True, eq=False)
class FrontierPoint:
    """A Pareto-optimal plan: its predicted file size and perturbation."""

    bytes: int
    perturbation: float
    plan: Plan


@dataclass(frozen=True, eq=False)
class Candidate:
    """A plan that was built: its allocation, its model, the file's bytes and what the search expected."""

    allocation: Allocation
    plan: Plan
    model: onnx.ModelProto
    bytes: int
    predicted_bytes: int


@dataclass(frozen=True, eq=False)
class _Part:
    """A search restricted to some widths.

    kept: by site, the option numbers of the whole search that its options have. most, needed: bytes that its plans
    share at most, and at least where they use all of its widths.
    """

    solver: Solver
    kept: list[list[int]]
    most: int
    needed: int


class Compiler:
    """Plans and files of one prepared model and one sensitivity table, for any budget.

    The bytes that don't depend on widths are measured once, on a file of the smallest widths.
    """

    def __init__(
        self,
        prepared: Prepared,
        sensitivity: Sensitivity,
        weight_bits: Sequence[int],
        activation_bits: Sequence[int] | None,
        *,
        activation_average: float | None = None,
        pinned: Mapping[str, int] | None = None,
        keep_metadata: bool = False,
        channels: bool = False,
    ) -> None:
        prepared.require_weights()
        require_same_model(sensitivity.model, fingerprint(prepared.model), "the sensitivity table")
        self.prepared = prepared
        self.keep_metadata = keep_metadata
        self.space: SearchSpace = search_space(
            prepared, sensitivity, weight_bits, activation_bits, pinned=pinned, channels=channels
        )
        self.second_budget = self.space.second_budget(activation_average)
        try:
            alike = self.space.alike()
            self.least = solve(alike, smallest(alike, self.second_budget), self.second_budget)
        except Infeasible as error:
            narrowest = min(activation_bits or (8,))
            raise BudgetError(
                f"--activation-average {activation_average:g} can't be met with --activation-bits of {narrowest} "
                f"and more: the smallest possible average is {error.smallest / self.space.activation_elements:.2f}"
            ) from error
        self._parts: dict[frozenset[int], _Part | None] = {}
        self.least_bytes = written_bytes(self.build(self.space.plan(self.least)))
        self.base = self.least_bytes - self.space.bytes(self.least)

    def build(self, plan: Plan) -> onnx.ModelProto:
        """The file's model for `plan`."""
        return compile_plan(self.prepared, plan, keep_metadata=self.keep_metadata)

    def best(self, budget: int) -> Candidate:
        """The optimal plan whose file takes no more than `budget` bytes, and that file.

        Raises BudgetError with the smallest size that is possible.
        """
        allowed = budget
        for _ in range(_CORRECTIONS):
            allocation = self._optimum(allowed - self.base)
            if allocation is None:
                break
            candidate = self.candidate(allocation)
            if candidate.bytes <= budget:
                return candidate
            # Lengths of names and of protobuf's own prefixes can be off by a few bytes.
            allowed -= candidate.bytes - budget
        raise BudgetError(
            f"no plan fits {budget:,} bytes: the smallest file with these widths has {self.least_bytes:,} "
            f"(--size {self.least_bytes}B); a smaller one needs narrower --bits"
        )

    def candidate(self, allocation: Allocation) -> Candidate:
        """The file of an allocation, however it was chosen."""
        plan = self.space.plan(allocation)
        model = self.build(plan)
        return Candidate(allocation, plan, model, written_bytes(model), self.predicted_bytes(allocation))

    def predicted_bytes(self, allocation: Allocation) -> int:
        """Bytes of an allocation's file, but for a few."""
        return self.base + self.space.bytes(allocation)

    def _optimum(self, budget: int) -> Allocation | None:
        """The allocation of least loss whose bytes, with what it shares, are within `budget`.

        What is shared depends on which widths are used at all, and several widths share some of it, so the search
        is done for each set of packed widths, with all that the set can share paid for. The optimum uses one of
        these sets. What it then turns out not to need (shapes of weights that all have 8 bits) is searched again.
        A set whose relaxation, with what it can't do without paid for, loses more than is known is left out.
        """
        best = self.least if self.space.bytes(self.least) <= budget else None
        widths = self.space.packed_widths()
        for count in range(len(widths), -1, -1):
            for packed in combinations(widths, count):
                part = self._part(frozenset(packed))
                if part is not None and (best is None or part.solver.lower_bound(budget - part.needed) <= best.loss):
                    best = self._better(best, part, budget)
        return best

    def _part(self, packed: frozenset[int]) -> _Part | None:
        """The search with no other packed widths than these; it serves many budgets."""
        if packed not in self._parts:
            found = self.space.restricted(packed)
            if found is not None:
                problem, kept, most = found
                part = _Part(Solver(problem, self.second_budget), kept, most, self.space.needed_bytes(packed))
            self._parts[packed] = None if found is None else part
        return self._parts[packed]

    def _better(self, best: Allocation | None, part: _Part, budget: int) -> Allocation | None:
        tried: set[int] = set()
        shared = part.most
        while shared not in tried and len(tried) < _CORRECTIONS:
            tried.add(shared)
            try:
                found = part.solver.solve(budget - shared)
            except Infeasible:
                break
            choice = tuple(row[option] for row, option in zip(part.kept, found.choice, strict=True))
            allocation = replace(found, choice=choice)
            used = self.space.bytes(allocation)
            if used <= budget and (best is None or (allocation.loss, used) < (best.loss, self.space.bytes(best))):
                best = allocation
            # What it shares really: less than was paid for, or more where too little had been.
            shared = used - found.size
        return best

    def tuned(self, candidate: Candidate, tune: Tune) -> Candidate:
        """`candidate` with numbers that `tune` has learned; its file has the same size."""
        model = compile_plan(self.prepared, candidate.plan, keep_metadata=self.keep_metadata, tune=tune)
        return replace(candidate, model=model, bytes=written_bytes(model))

    def frontier(self, points: int) -> list[FrontierPoint]:
        """Pareto-optimal plans in rising size, falling perturbation.

        The search counts what several widths share as if it were always there; the sizes are those of the files.
        """
        whole = self.space.restricted(frozenset(self.space.packed_widths()))
        assert whole is not None
        found = frontier(whole[0], points=points, second_budget=self.second_budget)
        sized = [(self.base + self.space.bytes(entry), entry.loss, entry) for entry in found]
        kept: list[FrontierPoint] = []
        for size, loss, entry in sorted(sized, key=lambda point: point[:2]):
            if not kept or loss < kept[-1].perturbation:
                kept.append(FrontierPoint(size, loss, self.space.plan(entry)))
        return kept

    def shares(self, allocation: Allocation) -> dict[str, float]:
        """Each site's share of the predicted perturbation."""
        losses = {
            name: self.space.problem.loss[index][option]
            for index, (name, option) in enumerate(
                zip((*self.space.weights, *self.space.activations), allocation.choice, strict=True)
            )
        }
        total = sum(losses.values()) or 1.0
        return {name: loss / total for name, loss in losses.items()}


def compile_plan(
    prepared: Prepared, plan: Plan, *, keep_metadata: bool = False, tune: Tune | None = None
) -> onnx.ModelProto:
    """The file's model for `plan`: quantized graph, tuned by `tune`, then the target's packed form."""
    encodings = plan.encodings(prepared)
    prepared = prepared.for_encodings(encodings)
    # No others: a table of embeddings may be larger than all that has a bias.
    corrected = {layer.weight for layer in prepared.layers if layer.output in plan.expected_inputs}
    shifts = corrections(prepared, rounded_to_nearest(prepared, encodings, corrected), plan.expected_inputs)
    quantized = trainable(prepared, encodings, shifts)
    if tune is not None:
        quantized = with_initializers(quantized, tune(prepared.model, quantized))
    return lower(prepared, quantized, encodings, keep_metadata=keep_metadata)
