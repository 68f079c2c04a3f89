"""Environments of `race.py` for TorchRL's DreamerV3 recipe, whose `env.factory` this is; see `race_torchrl.yaml`."""

from __future__ import annotations

import gymnasium
import numpy as np
import race_tasks  # noqa: F401, registers the tasks
from gymnasium.spaces import Box, Dict
from gymnasium.wrappers import ClipAction, RescaleAction, TransformObservation
from torchrl.envs import GymWrapper


def make(seed: int | None, env_index: int, num_envs: int, task: str) -> GymWrapper:
    """One environment: ``observation`` is a vector, ``pixels`` an image with its channels first.

    The recipe's policy has a range of -1 to 1, which are the bounds of the actions here.
    """
    env = gymnasium.make(f"race/{task}-v0")
    if isinstance(env.action_space, Box):
        env = ClipAction(RescaleAction(env, -1.0, 1.0))
    if len(env.observation_space.shape) == 3:
        height, width, channels = env.observation_space.shape
        space = Dict(pixels=Box(0, 255, (channels, height, width), np.uint8))
        env = TransformObservation(env, lambda image: {"pixels": image.transpose(2, 0, 1)}, space)
    return GymWrapper(env)
