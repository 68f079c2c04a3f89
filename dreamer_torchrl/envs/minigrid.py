"""MiniGrid's tasks, seen as symbols or as pixels."""

from __future__ import annotations

from typing import Any

import gymnasium
import minigrid
import numpy as np
from gymnasium.spaces import Dict, Discrete, MultiDiscrete
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX, STATE_TO_IDX
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper

PROPERTIES = (len(OBJECT_TO_IDX), len(COLOR_TO_IDX), len(STATE_TO_IDX))


class Symbols(gymnasium.ObservationWrapper):
    """The cells in view, each with the classes of its object, color and state, and the direction. No mission."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        cells = np.prod(env.observation_space["image"].shape[:2])
        self.observation_space = Dict(view=MultiDiscrete(np.tile(PROPERTIES, cells)), direction=Discrete(4))

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {"view": observation["image"].reshape(-1), "direction": observation["direction"]}


def task(name: str = "DoorKey-5x5", pixels: bool = False, render_mode: str | None = None) -> gymnasium.Env:
    """Make ``MiniGrid-<name>-v0``; pixels show the whole grid, 8 to a cell, symbols what the agent sees.

    The mission is left out: choose a task where it is always the same.

    Example:
        >>> task("MemoryS7").observation_space["view"].shape
        (147,)
    """
    gymnasium.register_envs(minigrid)
    env = gymnasium.make(f"MiniGrid-{name}-v0", render_mode=render_mode, disable_env_checker=True)
    return ImgObsWrapper(RGBImgObsWrapper(env)) if pixels else Symbols(env)
