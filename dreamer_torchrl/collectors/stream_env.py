"""Any environment as one endless stream of steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from dreamer_torchrl.envs import make_env
from dreamer_torchrl.keys import ENDLESS, STREAM
from dreamer_torchrl.modules.spaces import key_name, scale_action

ENDS = ("terminated", "done")
FLAGS = ("is_init", *ENDS)


class NotFinite(ValueError):
    """An environment gave a reward or an observation that is not a finite number."""


def episode_seed(entropy: Iterable[int], episode: int) -> int:
    """The seed with which an episode starts: it depends on the run, the stream's place in it and the count alone."""
    return int(np.random.SeedSequence([*entropy, episode]).generate_state(1)[0] >> 1)


class StreamEnv(EnvBase):
    """Any environment as one that never ends: the step after the last one of an episode is the first of the next.

    The root entries are a step: the observation, ``reward`` (received on arrival, 0 on the first step), ``is_init``,
    ``terminated`` (the task itself ended here), ``done`` (last step of the episode, for any reason) and ``stream``.
    The terminal observation is a step of its own, whose action starts the next episode. The reward and the flags that
    TorchRL asks for are zeros under ``endless``, beside the episode's number.

    Actions with finite bounds have the spec -1 to 1 here: they are clipped, scaled and given to the inner environment
    ``repeat`` times; rewards add up. The seeds of episodes are made of ``entropy``; ``set_seed`` replaces it.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> steps = StreamEnv(GymEnv("CartPole-v1")).rollout(100)
        >>> bool(steps["is_init"].sum() > 1), steps.shape
        (True, torch.Size([100]))
    """

    def __init__(self, env: EnvBase, repeat: int = 1, entropy: Iterable[int] = (), stream: int = 0):
        if env.batch_size:
            told = f"StreamEnv takes one environment, this one has batch size {list(env.batch_size)}:"
            raise ValueError(f"{told} make a stream of each and batch the streams, with SerialEnv for example.")
        super().__init__(device=env.device, batch_size=env.batch_size)
        self.env, self.repeat, self.stream = env, repeat, stream
        self.seed(entropy)
        self._observed, self._acted = list(env.observation_spec.keys(True, True)), list(env.action_keys)
        taken = sorted({"reward", *FLAGS, STREAM, ENDLESS} & set(env.observation_spec.keys()))
        if taken:
            raise ValueError(
                f"The environment has an observation {taken[0]!r}, a name that a step needs for itself: "
                f"append RenameTransform([{taken[0]!r}], ['observed_{taken[0]}']), or leave InitTracker out."
            )
        number, flag = Unbounded((1,), device=env.device), Binary(1, dtype=torch.bool, device=env.device)
        count = Unbounded((1,), dtype=torch.int64, device=env.device)
        step = {"reward": number, **dict.fromkeys(FLAGS, flag), STREAM: count, ENDLESS: Composite(episode=count)}
        self.observation_spec = env.observation_spec.clone().update(step)
        self.action_spec, self.bounds = scaled_actions(env.full_action_spec)  # the environment's own bounds
        self.reward_spec = Composite({ENDLESS: Composite(reward=number)})
        self.done_spec = Composite({ENDLESS: Composite(done=flag, terminated=flag)})

    def begin(self) -> TensorDictBase:
        self.env.set_seed(episode_seed(self.entropy, self.episode))
        self.episode += 1
        self._arrived = self.env.reset()
        return self._seen(torch.zeros(1, device=self.device), first=True)

    def advance(self, action: TensorDictBase) -> TensorDictBase:
        """The step that follows an action, or the first one of the next episode."""
        if self._arrived is None or self._arrived["done"].any():
            return self.begin()
        action = action.select(*self._acted)
        for key, (low, high) in self.bounds.items():
            action[key] = scale_action(action[key], low, high)
        reward = torch.zeros(1, device=self.device)
        for _ in range(self.repeat):
            self._arrived = self.env._step(self._arrived.update(action))  # `step` also copies and checks: twice as long
            if not set(ENDS) <= set(self._arrived.keys()):
                self._arrived = self.env._complete_done(self.env.full_done_spec, self._arrived)
            reward = reward + self._arrived["reward"].reshape(1)
            if self._arrived["done"].any():
                break
        return self._seen(reward, first=False)

    def resume(self, episode: int, actions: Iterable[TensorDictBase] = ()) -> TensorDictBase:
        """Restart an episode and repeat its actions; returns the last step."""
        self.episode = episode
        step = self.begin()
        for action in actions:
            step = self.advance(action)
        return step

    def end_episode(self, following: int) -> None:
        """Give up the present episode: the next action starts the episode of number ``following``."""
        self.episode = following
        self._arrived: TensorDictBase | None = None  # what the inner environment showed last

    def seed(self, entropy: Iterable[int]) -> None:
        """Make the seeds of episodes of these numbers, or of chance; begin with episode 0."""
        self.entropy = tuple(entropy) or (int(np.random.SeedSequence().entropy % 2**32),)
        self.end_episode(0)

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        return self._endless(self.begin()).exclude((ENDLESS, "reward"))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        return self._endless(self.advance(tensordict))

    def _endless(self, step: TensorDictBase) -> TensorDictBase:
        return endless(step, torch.tensor([self.stream]), torch.tensor([self.episode - 1]))

    def _reset_proc_data(self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase) -> TensorDictBase:
        """TorchRL's own would give the entries under ``endless`` alone, since its flags are there."""
        return tensordict_reset if tensordict is None else tensordict.update(tensordict_reset)

    def _set_seed(self, seed: int | None) -> None:
        self.seed(() if seed is None else (seed,))

    def close(self, *, raise_if_closed: bool = True) -> None:
        super().close(raise_if_closed=raise_if_closed)
        if not self.env.is_closed:
            self.env.close()

    def _seen(self, reward: Tensor, first: bool) -> TensorDictBase:
        step = self._arrived.select(*self._observed)
        step["reward"] = reward.float()
        for key, value in step.items(True, True):
            if value.is_floating_point() and not value.isfinite().all():
                raise NotFinite(f"The environment gave {key_name(key)} = {value.flatten().tolist()[:8]}.")
        step["is_init"] = torch.tensor([first], device=self.device)
        for key in ENDS:
            step[key] = self._arrived[key].reshape(1)
        return step


def scaled_actions(action_spec: Composite) -> tuple[Composite, dict[NestedKey, tuple[Tensor, Tensor]]]:
    """The spec of actions as the agent gives them, -1 to 1 where they have finite bounds; and those bounds."""
    spec, bounds = action_spec.clone(), {}
    for key, leaf in action_spec.items(True, True):
        if not (isinstance(leaf, Bounded) and leaf.dtype.is_floating_point):
            continue
        low, high = leaf.space.low, leaf.space.high
        limit = torch.finfo(leaf.dtype).max / 2  # a box "without bounds" is often written with the largest float
        if (low > -limit).all() and (high < limit).all():
            bounds[key] = (low, high)
            spec[key] = Bounded(-1, 1, leaf.shape, dtype=leaf.dtype, device=leaf.device)
    return spec, bounds


def endless(steps: TensorDictBase, stream: Tensor, episode: Tensor) -> TensorDictBase:
    """Add ``stream`` and what TorchRL asks of an environment that never ends, for steps of any batch shape."""
    never = torch.zeros_like(episode, dtype=torch.bool)
    beside = {"episode": episode, "reward": torch.zeros_like(episode, dtype=torch.float32)}
    steps.set(STREAM, stream)
    return steps.set(ENDLESS, TensorDict(beside | {"done": never, "terminated": never.clone()}, steps.batch_size))


def stream_env(family: str, options: Mapping[str, Any], repeat: int, entropy: int, index: int) -> StreamEnv:
    """One environment as a stream; a worker process calls this, and imports nothing else of the package for it."""
    return StreamEnv(make_env(family, options), repeat, (entropy, index), index)
