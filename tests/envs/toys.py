"""Environments with uncommon spaces, for the tests and their factories."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Replayed(gymnasium.Env):
    """Shows samples of a space in the order of its seed, keeps the actions; the last step is cut off."""

    def __init__(self, observation_space: gymnasium.Space, action_space: gymnasium.Space, length: int = 3):
        self.observation_space, self.action_space, self.length = observation_space, action_space, length
        self.actions: list[Any] = []
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.seeds.append(seed)
        self.actions.clear()
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.actions.append(action)
        return self._show(), 1.0, False, len(self.actions) == self.length, {"unused": 1}

    def _show(self) -> Any:
        return self.observation_space.sample()


class Reused(Replayed):
    """Writes each observation into one and the same array, and gives rewards as arrays."""

    def __init__(self) -> None:
        super().__init__(spaces.Box(-9, 9, (1,), np.float32), spaces.Discrete(2))
        self.array = np.zeros(1, np.float32)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        _, reward, terminated, truncated, info = super().step(action)
        return self.array, np.array([reward]), np.bool_(terminated), np.bool_(truncated), info

    def _show(self) -> np.ndarray:
        self.array += 1
        return self.array


def gray() -> Replayed:
    """An image without a channel axis."""
    return Replayed(spaces.Box(0, 255, (48, 64), np.uint8), spaces.Discrete(3))


def broken() -> Replayed:
    """Shows NaN, and does not keep to its seed."""

    class Broken(Replayed):
        def _show(self) -> np.ndarray:
            return np.array([np.nan, np.random.default_rng().random()], np.float32)

    return Broken(spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(2))


def nothing() -> int:
    """No environment."""
    return 3
