"""Exact choice of an option per site under budgets: the multiple-choice knapsack problem and its frontier."""

from amq_onnx.allocation.mixes import channel_mixes
from amq_onnx.allocation.pareto import frontier
from amq_onnx.allocation.problem import Allocation, Infeasible, Problem
from amq_onnx.allocation.solver import Solver, smallest, solve

__all__ = ["Allocation", "Infeasible", "Problem", "Solver", "channel_mixes", "frontier", "smallest", "solve"]
