"""Custom environments, by the name of a function that builds one."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import gymnasium
from torchrl.envs import EnvBase

from dreamer_torchrl.envs.gym import wrapped
from dreamer_torchrl.envs.registry import check_factory


def custom_env(factory: str, arguments: Mapping[str, Any] | None = None) -> EnvBase:
    """Call ``package.module:function``, which makes a TorchRL or gymnasium environment; the current folder counts.

    Example:
        >>> custom_env("dreamer_torchrl.envs.tasks:Memory", {"lamps": 4}).reset()["observation"].shape
        torch.Size([5])
    """
    module, function = check_factory(factory)
    env = getattr(import_module(module), function)(**(arguments or {}))
    if isinstance(env, EnvBase):
        return env
    if isinstance(env, gymnasium.Env):
        return wrapped(env)
    raise TypeError(
        f"The factory {factory!r} gave a {type(env).__name__}: it must give a torchrl.envs.EnvBase or a gymnasium.Env."
    )
