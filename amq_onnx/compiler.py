"""From a sensitivity table to plans and files of any budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx

from amq_onnx.allocation import Allocation, Infeasible, frontier, smallest, solve
from amq_onnx.costs import SearchSpace, search_space
from amq_onnx.errors import BudgetError
from amq_onnx.model.file import fingerprint, model_bytes
from amq_onnx.plan import Plan
from amq_onnx.rewriting import Prepared, lower, simulate
from amq_onnx.sensitivity import Sensitivity, require_same_model

# After the budget is met once, what the file really took corrects the search; it settles in one or two rounds.
_CORRECTIONS = 4


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
        self.activation_average = activation_average
        try:
            least = smallest(self.space.problem, self.second_budget)
            reference = solve(self.space.problem, least, self.second_budget)
        except Infeasible as error:
            narrowest = min(activation_bits or (8,))
            raise BudgetError(
                f"--activation-average {activation_average:g} can't be met with --activation-bits of {narrowest} "
                f"and more: the smallest possible average is {error.smallest / self.space.activation_elements:.2f}"
            ) from error
        self.least_model = self.build(self.space.plan(reference))
        self.least_bytes = len(model_bytes(self.least_model))
        self.base = self.least_bytes - reference.size

    def build(self, plan: Plan) -> onnx.ModelProto:
        """The file's model for `plan`."""
        return compile_plan(self.prepared, plan, keep_metadata=self.keep_metadata)

    def best(self, budget: int) -> Candidate:
        """The optimal plan whose file takes no more than `budget` bytes, and that file.

        What widths share (tables, constants) depends on the plan by some hundred bytes, so the first file tells
        the bytes that don't depend on widths, and the search is done again with them until they agree.
        Raises BudgetError with the smallest size that is possible.
        """
        base = self.base
        found: Candidate | None = None
        for _ in range(_CORRECTIONS):
            try:
                allocation = solve(self.space.problem, budget - base, self.second_budget)
            except Infeasible:
                break
            plan = self.space.plan(allocation)
            if found is not None and plan == found.plan:
                found = replace(found, predicted_bytes=base + allocation.size)
                break
            model = self.build(plan)
            measured = len(model_bytes(model))
            if measured <= budget and (found is None or allocation.loss <= found.allocation.loss):
                found = Candidate(allocation, plan, model, measured, base + allocation.size)
            if measured - allocation.size == base:
                break
            base = measured - allocation.size
        if found is None:
            raise BudgetError(
                f"no plan fits {budget:,} bytes: the smallest file with these widths has {self.least_bytes:,} "
                f"(--size {self.least_bytes}B); a smaller one needs narrower --bits"
            )
        return found

    def frontier(self, points: int) -> list[FrontierPoint]:
        """Pareto-optimal plans in rising size."""
        found = frontier(self.space.problem, points=points, second_budget=self.second_budget)
        return [FrontierPoint(self.base + entry.size, entry.loss, self.space.plan(entry)) for entry in found]

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


def compile_plan(prepared: Prepared, plan: Plan, *, keep_metadata: bool = False) -> onnx.ModelProto:
    """The file's model for `plan`: simulated graph, then the target's packed form."""
    encodings = plan.encodings(prepared)
    return lower(prepared, simulate(prepared, encodings), encodings, keep_metadata=keep_metadata)
