"""The walk through the sites that HAQ's agent learns from, as a gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise

from amq_onnx.strategies.haq import Features, widths_of

Choice = tuple[int, ...]
# Share of the mean of rewards that one more episode leaves.
_KEPT = 0.95


class Episode(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A site a step: its features and the action before are seen, an action in [0, 1] is its width. The last step's
    reward is that of the plan, lowered to the budget; others have none.

    rewards: of all plans so far.
    """

    def __init__(
        self,
        features: Features,
        counts: Sequence[int],
        lower: Callable[[Choice], Choice],
        reward: Callable[[Choice], float],
    ) -> None:
        self.features = features
        self.counts = counts
        self.lower = lower
        self.reward = reward
        self.rewards: list[float] = []
        self.actions: list[float] = []
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (features.shape[1] + 1,), np.float32)
        self.action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """See gymnasium.Env."""
        super().reset(seed=seed)
        self.actions = []
        return self._seen(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """See gymnasium.Env."""
        self.actions.append(float(np.clip(action[0], 0.0, 1.0)))
        if len(self.actions) < len(self.counts):
            return self._seen(), 0.0, False, False, {}
        reward = self.reward(self.lower(widths_of(self.actions, self.counts)))
        self.rewards.append(reward)
        return self._seen(), reward, True, False, {}

    def _seen(self) -> NDArray[np.float32]:
        place = min(len(self.actions), len(self.counts) - 1)
        before = self.actions[-1] if self.actions else 1.0
        return np.append(self.features[place], np.float32(before))


class FadingNoise(ActionNoise):
    """Normal noise whose deviation is multiplied with `fading` after each episode."""

    def __init__(self, deviation: float, fading: float, seed: int) -> None:
        super().__init__()
        self.deviation = deviation
        self.fading = fading
        self.generator = np.random.default_rng(seed)

    def reset(self) -> None:
        """An episode has ended."""
        self.deviation *= self.fading

    def __call__(self) -> NDArray[np.float32]:
        """Noise for one action."""
        return self.generator.normal(0.0, self.deviation, 1).astype(np.float32)

    def around(self, action: NDArray[np.float32]) -> NDArray[np.float32]:
        """`action`, in [-1, 1], with noise that keeps it there: the normal distribution truncated to the interval, by
        drawing again."""
        while True:
            found = action + self()
            if abs(float(found.item())) <= 1:
                return found


class Explorer(DDPG):
    """DDPG with truncated noise, as HAQ has it, where actions with noise are otherwise clipped: an actor that says 0 or
    1, which it soon does, would be taken at its word every other time."""

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        taken, scaled = super()._sample_action(learning_starts, None, n_envs)
        if self.num_timesteps < learning_starts or not isinstance(action_noise, FadingNoise):
            return taken, scaled
        scaled = action_noise.around(scaled)
        return self.policy.unscale_action(scaled), scaled


class SharedReward(ReplayBuffer):
    """Gives every step of an episode the reward of its last, less the running mean of those before: each width had its
    part in it, and what all plans have in common tells nothing."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._steps: list[int] = []
        self._mean: float | None = None

    def add(self, *given: Any, **named: Any) -> None:
        """See ReplayBuffer.add(obs, next_obs, action, reward, done, infos)."""
        self._steps.append(self.pos)
        reward, done = float(given[3][0]), bool(given[4][0])
        super().add(*given, **named)
        if done:
            self.rewards[self._steps] = reward - (reward if self._mean is None else self._mean)
            self._mean = reward if self._mean is None else _KEPT * self._mean + (1 - _KEPT) * reward
            self._steps = []
