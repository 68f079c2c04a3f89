"""Environments, one file per family. torch is imported when one is made, not before."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dreamer_torchrl.envs.registry import UnknownEnvironment, check_env

if TYPE_CHECKING:
    import numpy as np
    from torchrl.envs import EnvBase

__all__ = ["UnknownEnvironment", "check_env", "frame", "make_env"]


def make_env(family: str, options: Mapping[str, Any]) -> EnvBase:
    """Make one environment, without batch dimensions; the options are the arguments of its family's function.

    ``env.set_seed(seed)`` and ``env.reset()`` then start an episode that the seed alone decides.

    Example:
        >>> make_env("gym", {"id": "CartPole-v1"}).reset()["observation"].shape
        torch.Size([4])
    """
    check_env(family, options)
    module = import_module(f"dreamer_torchrl.envs.{'gym' if family == 'custom' else family}")
    return getattr(module, f"{family}_env")(**options)


def frame(env: EnvBase) -> np.ndarray | None:
    """An image of the current state of an environment, uint8 ``[height, width, 3]``; None if it has no renderer."""
    import numpy as np
    from torchrl.envs import GymWrapper, TransformedEnv

    while isinstance(env, TransformedEnv):
        env = env.base_env
    source = env._env if isinstance(env, GymWrapper) else env
    drawn = source.render_mode == "rgb_array" if source is not env else hasattr(type(env), "render")  # of your own
    picture = source.render() if drawn else None
    return None if picture is None else np.asarray(picture, dtype=np.uint8)
