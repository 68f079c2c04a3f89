"""Gymnasium environments by their id, any of them as TorchRL's, and those that a function of the user makes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase, GymWrapper
from torchrl.envs.gym_like import BaseInfoDictReader

from dreamer_torchrl.envs.codecs import Fields, codec_of, observation_codec
from dreamer_torchrl.envs.registry import check_factory, check_gym
from dreamer_torchrl.keys import MASK
from dreamer_torchrl.modules.spaces import Discrete, spaces_from_spec


class Gymnasium(GymWrapper):
    """TorchRL's `GymWrapper` for one environment, with codecs for every space that an agent can use.

    An observation that is one array stands under ``pixels`` if it is an image, else under ``observation``; the parts of
    a `Tuple` under "0", "1" and so on; actions under ``action``. Floats are float32, gray images have a channel axis.
    With ``size`` all images are resized to that side, averaged where they become smaller.

    Example:
        >>> env = Gymnasium(gymnasium.make("Pendulum-v1"))
        >>> env.rollout(3)["next", "observation"].shape
        torch.Size([3, 3])
    """

    _size: int | None = None
    _next_seed: int | None = None

    def __init__(self, env: gymnasium.Env, size: int | None = None, **options: Any):
        self._size = size  # first, since GymWrapper makes the specs at once
        super().__init__(env, **options)  # its metaclass adds some

    def _make_specs(self, env: gymnasium.Env, batch_size: torch.Size | None = None) -> None:
        self._observation, self._single = observation_codec(env.observation_space)
        self._action = codec_of(env.action_space, "action")
        spec = self._observation.spec
        leaves = [key for key in spec.keys(True, True) if spec[key].dtype is torch.uint8 and spec[key].ndim == 3]
        self._images = [key for key in leaves if self._size and spec[key].shape[:2] != (self._size, self._size)]
        self.observation_spec = spec.clone()
        for key in self._images:
            shape = (self._size, self._size, spec[key].shape[-1])
            self.observation_spec[key] = Bounded(0, 255, shape, dtype=torch.uint8)
        self.action_spec = Composite(action=self._action.spec)
        self.reward_spec = Unbounded((1,))
        self.done_spec = self._make_done_spec()

    def _set_seed(self, seed: int | None) -> None:
        self._next_seed = seed

    def _reset(
        self, tensordict: TensorDictBase | None = None, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> TensorDictBase:
        seed, self._next_seed = self._next_seed if seed is None else seed, None
        return super()._reset(tensordict, seed=seed, options=options)

    def read_action(self, action: Tensor | dict[str, Any]) -> Any:
        if isinstance(action, Tensor) and isinstance(self._action, Fields):  # a single field comes without its name
            return self._action.to_value(dict.fromkeys(self._action.names.values(), action))
        return self._action.to_value(action if isinstance(action, Tensor) else action["action"])

    def read_obs(self, observations: Any) -> dict[str, Tensor | TensorDictBase]:
        read = self._observation.read({self._single: observations} if self._single else observations)
        if self._images:
            found = TensorDict(read)
            for key in self._images:
                found[key] = resized(found[key], self._size)
            read = dict(found.items())
        return read

    def _output_transform(self, step_outputs_tuple: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(step_outputs_tuple) != 5:
            told = f"{type(self._env.unwrapped).__name__}.step returned {len(step_outputs_tuple)} values, as old"
            raise TypeError(f"{told} versions of Gym did: return observation, reward, terminated, truncated, info.")
        observation, reward, terminated, truncated, info = step_outputs_tuple
        return observation, reward, terminated, truncated, terminated or truncated, info

    def _reset_output_transform(self, reset_data: Any) -> tuple[Any, dict[str, Any]]:
        if not (isinstance(reset_data, tuple) and len(reset_data) == 2 and isinstance(reset_data[1], dict)):
            told = f"{type(self._env.unwrapped).__name__}.reset returned no info, as old versions of Gym did: return"
            raise TypeError(f"{told} observation, info, where info may be {{}}.")
        return reset_data

    def read_reward(self, reward: Any) -> Tensor:
        return torch.from_numpy(np.array(reward, dtype=np.float32).reshape(1))

    def read_done(
        self, terminated: bool, truncated: bool, done: bool | None = None
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        flags = bool(terminated), bool(truncated), bool(terminated or truncated)
        return *(torch.tensor([flag]) for flag in flags), flags[-1]


class MaskReader(BaseInfoDictReader):
    """Copies ``info["action_mask"]``, one flag for each class of the action, to the observation ``action_mask``."""

    def __init__(self, action_spec: Composite):
        spaces = spaces_from_spec(action_spec, "action").values()
        self.count = sum(space.size for space in spaces if isinstance(space, Discrete))

    @property
    def info_spec(self) -> Composite:
        return Composite({MASK: Binary(self.count, dtype=torch.bool)})

    def __call__(self, info_dict: dict[str, Any], tensordict: TensorDictBase) -> TensorDictBase:
        mask = np.asarray(info_dict[MASK]) if MASK in info_dict else None
        if mask is None or mask.shape != (self.count,):
            found = "no info['action_mask']" if mask is None else f"info['action_mask'] of shape {list(mask.shape)}"
            remedy = f"its action has {self.count} classes, so give [{self.count}], or set env.action_mask=false."
            raise ValueError(f"The environment gave {found}: {remedy}")
        return tensordict.set(MASK, torch.from_numpy(mask.astype(bool)))


def resized(image: Tensor, size: int) -> Tensor:
    """An image of uint8 ``[height, width, channels]`` with both sides of that size."""
    options = {"mode": "bilinear", "antialias": True}
    return torch.nn.functional.interpolate(image.permute(2, 0, 1)[None], (size, size), **options)[0].permute(1, 2, 0)


def wrapped(env: gymnasium.Env, size: int | None = None, action_mask: bool = False) -> Gymnasium:
    """The environment for TorchRL; `TypeError` with the remedy where it lacks what gymnasium asks of it."""
    own, name = env.unwrapped, type(env.unwrapped).__name__
    for space in ("observation_space", "action_space"):
        if not isinstance(getattr(env, space, None), gymnasium.Space):
            raise TypeError(f"{name} has no {space}: set self.{space} to a gymnasium.spaces.Space in its __init__.")
    parameters = signature(own.reset).parameters
    if "seed" not in parameters and not any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values()):
        told = f"{name}.reset takes no seed, as in old versions of Gym: write `def reset(self, *, seed=None,"
        raise TypeError(f"{told} options=None)` and call `super().reset(seed=seed)` in it.")
    made = Gymnasium(env, size)
    return made.set_info_dict_reader(MaskReader(made.full_action_spec)) if action_mask else made


class FreshWorld(gymnasium.Wrapper):
    """BipedalWalker with a new world per episode: memory of earlier contacts makes episodes of the same seed differ."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        walker = self.unwrapped
        walker.world, walker.terrain = type(walker.world)(), []  # without terrain it destroys nothing in the old one
        return super().reset(seed=seed, options=options)


def gym_env(
    id: str,
    arguments: Mapping[str, Any] | None = None,
    size: int | None = None,
    action_mask: bool = False,
    render: bool = False,
) -> Gymnasium:
    """Make a gymnasium environment by its id, images resized to ``size``; with ``render`` `envs.frame` draws it.

    With ``action_mask`` the environment's ``info["action_mask"]`` is shown to the agent.

    Example:
        >>> gym_env("CarRacing-v3", arguments={"continuous": False}).action_spec.shape
        torch.Size([5])
    """
    draws = "rgb_array" in getattr(check_gym(id), "metadata", {}).get("render_modes", ())
    # The doctor checks an environment on request. Gymnasium's own checks at each start are left out.
    options = {"render_mode": "rgb_array"} if render and draws else {}
    env = gymnasium.make(id, disable_env_checker=True, **options, **(arguments or {}))
    return wrapped(FreshWorld(env) if env.spec.id.startswith("BipedalWalker") else env, size, action_mask)


def custom_env(factory: str, arguments: Mapping[str, Any] | None = None, size: int | None = None) -> EnvBase:
    """Call ``package.module:function``, which makes a TorchRL or gymnasium environment; the current folder counts.

    Images of a gymnasium environment are resized to ``size``; one of TorchRL has transforms of its own.

    Example:
        >>> custom_env("dreamer_torchrl.envs.tasks:Memory", {"lamps": 4}).reset()["observation"].shape
        torch.Size([5])
    """
    module, function = check_factory(factory)
    env = getattr(import_module(module), function)(**(arguments or {}))
    if isinstance(env, EnvBase):
        return env
    if isinstance(env, gymnasium.Env):
        return wrapped(env, size)
    raise TypeError(
        f"The factory {factory!r} gave a {type(env).__name__}: it must give a torchrl.envs.EnvBase or a gymnasium.Env."
    )
