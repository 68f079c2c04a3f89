"""Environments of `race.py` for TorchRL's DreamerV3 recipe, whose `env.factory` this is; see `race_torchrl.yaml`."""

from __future__ import annotations

import gymnasium
import race_tasks  # noqa: F401, registers the tasks
from gymnasium.wrappers import ClipAction, RescaleAction
from torchrl.envs import Compose, EnvBase, GymWrapper, PermuteTransform, RenameTransform, TransformedEnv


def make(seed: int | None, env_index: int, num_envs: int, task: str) -> EnvBase:
    """One environment: ``observation`` is a vector, ``pixels`` an image with its channels first.

    The recipe's policy has a range of -1 to 1, which are the bounds of the actions here.
    """
    env = gymnasium.make(f"race/{task}-v0")
    if isinstance(env.action_space, gymnasium.spaces.Box):
        env = ClipAction(RescaleAction(env, -1.0, 1.0))
    if len(env.observation_space.shape) == 1:
        return GymWrapper(env)
    renamed = RenameTransform(["observation"], ["pixels"])
    return TransformedEnv(GymWrapper(env), Compose(renamed, PermuteTransform([-1, -3, -2], in_keys=["pixels"])))
