"""From a sensitivity table to plans and files of any budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import onnx
from numpy.typing import NDArray

from amq_onnx.allocation import Allocation, Infeasible, Problem, frontier, smallest, solve
from amq_onnx.costs import SearchSpace, search_space
from amq_onnx.errors import BudgetError
from amq_onnx.model.file import fingerprint, model_bytes
from amq_onnx.plan import Plan, corrections
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
        keep_metadata: bool = False,
    ) -> None:
        prepared.require_weights()
        require_same_model(sensitivity.model, fingerprint(prepared.model), "the sensitivity table")
        self.prepared = prepared
        self.keep_metadata = keep_metadata
        self.space: SearchSpace = search_space(prepared, sensitivity, weight_bits, activation_bits)
        self.second_budget = self.space.second_budget(activation_average)
        try:
            least = smallest(self.space.problem, self.second_budget)
            self.least = solve(self.space.problem, least, self.second_budget)
        except Infeasible as error:
            narrowest = min(activation_bits or (8,))
            raise BudgetError(
                f"--activation-average {activation_average:g} can't be met with --activation-bits of {narrowest} "
                f"and more: the smallest possible average is {error.smallest / self.space.activation_elements:.2f}"
            ) from error
        self.least_bytes = len(model_bytes(self.build(self.space.plan(self.least))))
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
            plan = self.space.plan(allocation)
            model = self.build(plan)
            candidate = Candidate(
                allocation, plan, model, len(model_bytes(model)), self.base + self.space.bytes(allocation)
            )
            if candidate.bytes <= budget:
                return candidate
            # Lengths of names and of protobuf's own prefixes can be off by a few bytes.
            allowed -= candidate.bytes - budget
        raise BudgetError(
            f"no plan fits {budget:,} bytes: the smallest file with these widths has {self.least_bytes:,} "
            f"(--size {self.least_bytes}B); a smaller one needs narrower --bits"
        )

    def _optimum(self, budget: int) -> Allocation | None:
        """The allocation of least loss whose bytes, with what it shares, are within `budget`.

        What is shared depends on which widths are used at all, and several widths share some of it, so the search
        is done for each set of packed widths, with all that the set can share paid for. The optimum uses one of
        these sets. What it then turns out not to need (shapes of weights that all have 8 bits) is searched again.
        """
        best = self.least if self.space.bytes(self.least) <= budget else None
        widths = self.space.packed_widths()
        for count in range(len(widths), -1, -1):
            for packed in combinations(widths, count):
                found = self.space.restricted(frozenset(packed))
                if found is not None:
                    best = self._better(best, *found, budget)
        return best

    def _better(
        self, best: Allocation | None, problem: Problem, kept: list[list[int]], shared: int, budget: int
    ) -> Allocation | None:
        tried: set[int] = set()
        while shared not in tried and len(tried) < _CORRECTIONS:
            tried.add(shared)
            try:
                found = solve(problem, budget - shared, self.second_budget)
            except Infeasible:
                break
            choice = tuple(row[option] for row, option in zip(kept, found.choice, strict=True))
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
        return replace(candidate, model=model, bytes=len(model_bytes(model)))

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
    quantized = trainable(prepared, encodings, corrections(prepared, encodings, plan.expected_inputs))
    if tune is not None:
        quantized = with_initializers(quantized, tune(prepared.model, quantized))
    return lower(prepared, quantized, encodings, keep_metadata=keep_metadata)
