"""HAQ: an agent that learns widths from the score of the quantized network (Wang et al. 2019, arXiv 1811.08886).

A DDPG agent (Lillicrap et al. 2016, arXiv 1509.02971) from stable-baselines3 walks through the sites, sees what each is
like and the width that it gave the one before, and gives each a width. Widths beyond the budget are lowered site after
site until they fit (HAQ, section 3.4); the score of the file is then the reward of all steps, undiscounted
(section 3.6).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from amq_onnx.allocation import Allocation
from amq_onnx.compiler import Compiler
from amq_onnx.errors import BudgetError, UsageError

Features = NDArray[np.float32]

# The agent as HAQ has it: two hidden layers of 300, exploration by noise that fades from episode to episode.
_HIDDEN = 300
_NOISE = 0.5
_FADING = 0.99
_BATCH = 64
_RATE = 1e-3
_AVERAGING = 0.01


@dataclass(frozen=True)
class AgentOptions:
    """episodes: plans that the agent tries; warm_up: of these, those drawn at random first. epochs: passes over the
    data that each is trained for before it is scored, one as HAQ has it."""

    episodes: int = 600
    warm_up: int = 20
    epochs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Search:
    """The best plan that the agent tried, its reward, and the rewards of all, in turn."""

    allocation: Allocation
    reward: float
    rewards: tuple[float, ...]


def require_agent() -> None:
    """Raise UsageError where the library of the agent isn't there."""
    if importlib.util.find_spec("stable_baselines3") is None:
        raise UsageError("the strategy haq needs stable-baselines3: pip install 'amq-onnx[haq]'")


def search(
    compiler: Compiler, budget: int, reward: Callable[[Allocation], float], options: AgentOptions | None = None
) -> Search:
    """Let the agent try plans of no more than `budget` bytes, and return the best.

    reward: of a plan, higher is better; asked once for each different plan. Raises UsageError without
    stable-baselines3, BudgetError where the narrowest widths are beyond the budget.
    """
    require_agent()
    from amq_onnx.strategies.haq_episode import Episode, Explorer, FadingNoise, SharedReward

    options = options or AgentOptions()
    space = compiler.space
    known: dict[tuple[int, ...], float] = {}

    def asked(choice: tuple[int, ...]) -> float:
        if choice not in known:
            known[choice] = reward(space.problem.allocation(choice))
        return known[choice]

    counts = [len(row) for row in space.widths]
    episode = Episode(features(compiler), counts, lambda choice: lowered(compiler, choice, budget), asked)
    agent = Explorer(
        "MlpPolicy",
        episode,
        learning_rate=_RATE,
        buffer_size=max(1024, 128 * len(counts)),
        learning_starts=options.warm_up * len(counts),
        batch_size=_BATCH,
        tau=_AVERAGING,
        gamma=1.0,
        train_freq=(1, "episode"),
        replay_buffer_class=SharedReward,
        gradient_steps=-1,
        action_noise=FadingNoise(_NOISE, _FADING, options.seed),
        policy_kwargs={"net_arch": [_HIDDEN, _HIDDEN]},
        seed=options.seed,
        device="cpu",
    )
    agent.learn(options.episodes * len(counts))
    best = max(known, key=lambda choice: known[choice])
    return Search(space.problem.allocation(best), known[best], tuple(episode.rewards))


def lowered(compiler: Compiler, choice: Sequence[int], budget: int) -> tuple[int, ...]:
    """`choice`, lowered by an option at one site after another, again and again, until it is within the budgets.

    Raises BudgetError where the narrowest is not.
    """
    problem = compiler.space.problem
    count = len(compiler.space.weights)
    found = list(choice)

    def fits(weights: bool) -> bool:
        allocation = problem.allocation(found)
        if weights:
            return compiler.predicted_bytes(allocation) <= budget
        return compiler.second_budget is None or allocation.second <= compiler.second_budget

    # Activations first: narrow ones share bounds, which are bytes of the file.
    for weights, sites in ((False, range(count, len(found))), (True, range(count))):
        while not fits(weights):
            wide = [index for index in sites if found[index]]
            if not wide:
                raise BudgetError(f"no plan of this strategy has {budget:,} bytes or less: give a larger --size")
            for index in wide:
                found[index] -= 1
                if fits(weights):
                    break
    return tuple(found)


def features(compiler: Compiler) -> Features:
    """What the agent sees of each site, [sites, 9], each between 0 and 1 (HAQ, section 3.1): its place, whether it is a
    weight, output and input channels, kernel size, stride, elements of the layer's input, weights, whether depthwise.

    Of an activation these are those of the first layer that reads it.
    """
    prepared, table = compiler.prepared, compiler.space.sensitivity
    strides = {}
    for node in prepared.model.graph.node:
        held = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        strides[node.output[0]] = max(held.get("strides", [1]))
    rows: dict[str, list[float]] = {}
    for layer in reversed(prepared.linear_layers):
        shape = prepared.weight(layer.weight).shape
        outputs = shape[layer.axis]
        elements = table.activations[layer.data].elements if layer.data in table.activations else 1
        weights = int(np.prod(shape))
        depthwise = layer.groups > 1 and layer.groups == outputs
        inputs = weights // outputs // int(np.prod(shape[2:]))
        seen = [outputs, inputs, max(shape[2:], default=1), strides[layer.output], elements, weights]
        rows[layer.weight] = rows[layer.data] = [*np.log2(1 + np.array(seen, np.float64)), float(depthwise)]
    names = [*compiler.space.weights, *compiler.space.activations]
    count = len(compiler.space.weights)
    found = np.array(
        [[place, float(place < count), *rows.get(name, [0.0] * 7)] for place, name in enumerate(names)], np.float64
    )
    found /= np.maximum(found.max(axis=0), 1e-9)
    return found.astype(np.float32)


def widths_of(actions: Sequence[float], counts: Sequence[int]) -> tuple[int, ...]:
    """Option numbers that actions in [0, 1] stand for: equal parts of the interval, the first the narrowest."""
    return tuple(min(count - 1, int(max(0.0, action) * count)) for action, count in zip(actions, counts, strict=True))
