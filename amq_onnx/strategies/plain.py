"""Widths without a search: the same for all, drawn at random, or the worst that an order of the layers allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from amq_onnx.allocation import Allocation
from amq_onnx.compiler import Candidate, Compiler
from amq_onnx.errors import BudgetError

# Plans of a size are those within this share of the budget.
_SLACK = 0.01
# Steps that a budget is cut into, where sums of sizes are told apart.
_STEPS = 1 << 14
_CORRECTIONS = 16
_FEW = 64


def fitting(compiler: Compiler, budget: int, choose: Callable[[int], Allocation]) -> Candidate:
    """The file of what `choose` makes of a budget in bytes, of no more than `budget` bytes and nearly as many where it
    can; the smallest file there is where that is above the budget time and again.

    Raises BudgetError where no file fits.
    """
    best: Candidate | None = None
    # What is allowed is moved between what gave a file that fits and what didn't: lengths of names and of protobuf's
    # own prefixes can be off by a few bytes, what widths share by more.
    below, above = 0, budget + 1
    allowed = budget
    for _ in range(_CORRECTIONS):
        try:
            candidate = compiler.candidate(choose(allowed))
        except BudgetError:
            below = allowed
        else:
            if candidate.bytes <= budget:
                below = allowed
                best = candidate if best is None or candidate.bytes > best.bytes else best
            else:
                above = allowed
        if above - below < 2 or (best is not None and best.bytes >= (1 - _SLACK) * budget):
            break
        excess = candidate.bytes - budget
        allowed = allowed - excess if best is None and 0 < excess < allowed - below else (below + above) // 2
    if best is not None:
        return best
    if compiler.least_bytes <= budget:
        return compiler.candidate(compiler.least)
    raise BudgetError(
        f"no plan fits {budget:,} bytes: the smallest file with these widths has {compiler.least_bytes:,}; give a "
        "larger --size"
    )


def uniform(compiler: Compiler, budget: int) -> Candidate:
    """The file of the widest width that all weights can have within `budget` bytes, and all activations within their
    average.

    Raises BudgetError where the narrowest is too wide.
    """
    for option in reversed(range(len(compiler.space.widths[0]))):
        allocation = _alike(compiler, option)
        # The prediction is off by a few bytes at most.
        if (
            compiler.predicted_bytes(allocation) <= budget + _FEW
            and (found := compiler.candidate(allocation)).bytes <= budget
        ):
            return found
    raise BudgetError(
        f"no width of all weights alike fits {budget:,} bytes: give a larger --size, or leave uniform out of "
        "--strategies"
    )


def uniform_bytes(compiler: Compiler, bits: int) -> int:
    """Bytes of the file whose weights all have `bits` bits, which is one of the compiler's widths."""
    return compiler.candidate(_alike(compiler, compiler.space.widths[0].index(bits))).bytes


def random_widths(compiler: Compiler, budget: int, seed: int) -> Allocation:
    """Widths drawn at random, then narrowed and widened at random until no weight can be widened within `budget` bytes;
    activations likewise within their average."""
    generator = np.random.default_rng(seed)
    space = compiler.space
    options = [len(row) for row in space.widths]
    choice = [int(generator.integers(count)) for count in options]
    weights = range(len(space.weights))

    def fits() -> bool:
        return compiler.predicted_bytes(space.problem.allocation(choice)) <= budget

    def active_fits() -> bool:
        bound = compiler.second_budget
        return bound is None or space.problem.allocation(choice).second <= bound

    _settle(choice, options, list(weights), fits, generator, "bytes")
    _settle(choice, options, list(range(len(weights), len(options))), active_fits, generator, "--activation-average")
    return space.problem.allocation(choice)


def sampled(compiler: Compiler, count: int, seed: int) -> list[tuple[int, float]]:
    """Bytes and perturbation of `count` plans, each of widths drawn at random from a part of the range, which is drawn
    too: so that they are of all sizes. Activations likewise, whatever their average."""
    generator = np.random.default_rng(seed)
    problem = compiler.space.problem
    options = np.array([len(row) for row in problem.loss])
    found = []
    for _ in range(count):
        low, high = np.sort(generator.random(2))
        choice = np.minimum((generator.uniform(low, high, len(options)) * options).astype(int), options - 1)
        allocation = problem.allocation(choice.tolist())
        found.append((compiler.predicted_bytes(allocation), allocation.loss))
    return found


def worst(compiler: Compiler, budget: int, order: Sequence[str]) -> Allocation:
    """Of all plans of this size that give no site fewer bits than the sites after it in `order`, the one of the largest
    perturbation: what the order alone leaves open (HAWQ-V2, section 5, the comparison of plans of equal size).

    order: all sites, the most sensitive first; weights and activations are looked at apart.
    """
    space = compiler.space
    assert space.problem.second is not None
    count = len(space.weights)
    names = [*space.weights, *space.activations]
    rank = {name: place for place, name in enumerate(order)}
    weights = sorted(range(count), key=lambda index: rank[names[index]])
    active = sorted(range(count, len(names)), key=lambda index: rank[names[index]])
    choice = [0] * len(names)
    # What widths share comes on top; `fitting` takes it off.
    spare = budget - compiler.base - sum(min(space.problem.size[index]) for index in active)
    _place(choice, weights, space.problem.loss, space.problem.size, spare, "bytes")
    bound = compiler.second_budget
    if bound is None:
        for index, option in zip(active, _uniform_activations(compiler), strict=True):
            choice[index] = option
    else:
        _place(choice, active, space.problem.loss, space.problem.second, bound, "--activation-average")
    return space.problem.allocation(choice)


def _alike(compiler: Compiler, option: int) -> Allocation:
    """All weights at one option, all activations at the widest that they can have."""
    choice = (*[option] * len(compiler.space.weights), *_uniform_activations(compiler))
    return compiler.space.problem.allocation(choice)


def _uniform_activations(compiler: Compiler) -> list[int]:
    """Option numbers of the widest width that all activations can have."""
    space = compiler.space
    count = len(space.weights)
    rows = space.widths[count:]
    assert space.problem.second is not None
    for option in reversed(range(max(map(len, rows), default=1))):
        if compiler.second_budget is None:
            return [option] * len(rows)
        if sum(row[option] for row in space.problem.second[count:]) <= compiler.second_budget:
            return [option] * len(rows)
    raise BudgetError("no width of all activations alike is within --activation-average: raise it")


def _settle(
    choice: list[int],
    options: Sequence[int],
    sites: list[int],
    fits: Callable[[], bool],
    generator: np.random.Generator,
    what: str,
) -> None:
    """Narrow random ones of `sites` until it fits, then widen random ones as far as that goes."""
    while not fits():
        wide = [index for index in sites if choice[index]]
        if not wide:
            raise BudgetError(f"the narrowest widths are beyond the budget of {what}: raise it")
        choice[int(generator.choice(wide))] -= 1
    widened = True
    while widened:  # what widths share can make room again
        widened = False
        for index in generator.permutation(np.repeat(sites, max(options))):
            if choice[index] + 1 < options[index]:
                choice[index] += 1
                if fits():
                    widened = True
                else:
                    choice[index] -= 1


def _place(
    choice: list[int],
    sites: Sequence[int],
    loss: Sequence[Sequence[float]],
    cost: Sequence[Sequence[int]],
    budget: int,
    what: str,
) -> None:
    """Options of `sites` that never rise along them, of the largest loss among those whose cost is the budget's.

    Costs above the least are rounded up to steps of what the budget has for them, so that what is found is within it.
    """
    if not sites:
        return
    least = {index: min(cost[index]) for index in sites}
    budget -= sum(least.values())
    step = max(1, -(-budget // _STEPS))
    steps = budget // step
    if budget < 0:
        raise BudgetError(f"the narrowest widths are beyond the budget of {what}: raise it")
    widest = max(len(loss[index]) for index in sites)
    best = np.full((widest, steps + 1), -np.inf)
    chosen: list[NDArray[np.int16]] = []
    for place, index in enumerate(sites):
        # From the narrowest up: the best of all options of the site before that are no narrower.
        before = np.full((widest, steps + 1), -np.inf)
        source = np.zeros((widest, steps + 1), np.int16)
        if place == 0:
            before[:, 0] = 0.0
        else:
            running = np.full(steps + 1, -np.inf)
            origin = np.zeros(steps + 1, np.int16)
            for option in reversed(range(widest)):
                better = best[option] > running
                running = np.where(better, best[option], running)
                origin = np.where(better, np.int16(option), origin)
                before[option], source[option] = running, origin
        best = np.full((widest, steps + 1), -np.inf)
        for option, (gain, taken) in enumerate(zip(loss[index], cost[index], strict=True)):
            whole = -(-(taken - least[index]) // step)
            if whole <= steps:
                best[option, whole:] = before[option, : steps + 1 - whole] + gain
        chosen.append(source)
    reachable = np.flatnonzero(np.isfinite(best.max(axis=0)))
    # Where no plan is that close, those of the largest size that there is.
    first = min(int(steps - _SLACK * (budget + sum(least.values())) / step), int(reachable[-1]))
    first = max(0, first)
    option, total = divmod(int(np.argmax(best[:, first:])), steps + 1 - first)
    total += first
    for place, index in reversed(list(enumerate(sites))):
        choice[index] = option
        total -= -(-(cost[index][option] - least[index]) // step)
        option = int(chosen[place][option, total])


def mean_traces(rows: Sequence[tuple[str, float | None, int]]) -> list[str]:
    """Names of sites, the largest mean trace first. rows: name, trace and elements."""
    known = [(name, abs(trace or 0.0) / elements) for name, trace, elements in rows]
    return [name for name, _ in sorted(known, key=lambda row: -row[1])]
