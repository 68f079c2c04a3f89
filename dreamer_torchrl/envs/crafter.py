"""Crafter, a survival game whose rewards are 22 achievements."""

from __future__ import annotations

from typing import Any

import crafter
import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Crafter(gymnasium.Env):
    """CrafterReward as a gymnasium environment: 64 x 64 pixels; death terminates, 10,000 steps truncate.

    Example:
        >>> Crafter().reset(seed=0)[0].shape
        (64, 64, 3)
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012, this is how gymnasium wants it

    def __init__(self, render_mode: str | None = None):
        self.render_mode = render_mode
        self.game = crafter.Env()
        self.observation_space = Box(0, 255, (64, 64, 3), np.uint8)
        self.action_space = Discrete(self.game.action_space.n)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.game = crafter.Env(seed=int(self.np_random.integers(2**31)))  # it takes a seed here alone
        return self.game.reset(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        picture, reward, over, info = self.game.step(action)
        dead = info["discount"] == 0
        return picture, reward, dead, over and not dead, info

    def render(self) -> np.ndarray:
        return self.game.render((256, 256))
