"""Gymnasium environments of every kind that an agent acts in, and agents for them."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn
from torchrl.envs import GymWrapper

from dreamer_torchrl.agents.agent import Agent, Size
from dreamer_torchrl.collectors.stream_env import StreamEnv
from tests.envs.toys import Replayed
from tests.objectives.examples import TINY


class Recorder(gymnasium.Wrapper):
    """Remembers, episode by episode, what the environment showed and what it was given."""

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.shown: list[list[Any]] = []
        self.given: list[list[Any]] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        if self.given and not self.given[-1]:  # TorchRL resets twice, the first time for the seed
            self.shown.pop(), self.given.pop()
        self.shown.append([copy.deepcopy(observation)])
        self.given.append([])
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *rest = super().step(action)
        self.shown[-1].append(copy.deepcopy(observation))
        self.given[-1].append(copy.deepcopy(action))
        return observation, *rest


def leaves(value: Any) -> list[np.ndarray]:
    """The arrays of a nested dict in the order of their names."""
    if isinstance(value, dict):
        return [leaf for name in sorted(value) for leaf in leaves(value[name])]
    return [np.asarray(value)]


def crane() -> gymnasium.Env:
    """Sees a picture, floats of 64 bits and a class, and is moved by four kinds of action at once."""
    return Replayed(
        spaces.Dict(
            camera=spaces.Dict(front=spaces.Box(0, 255, (48, 48, 3), np.uint8)),
            hook=spaces.Dict(position=spaces.Box(-1, 1, (2,), np.float64), load=spaces.Discrete(4)),
            switches=spaces.MultiBinary(3),
        ),
        spaces.Dict(
            arm=spaces.Dict(joints=spaces.Box(np.float32([-2, 0]), np.float32([3, 10]))),
            gear=spaces.Discrete(3),
            horns=spaces.MultiBinary(2),
            levers=spaces.MultiDiscrete([2, 3]),
        ),
        length=5,
    )


def environment(name: str) -> gymnasium.Env:
    """One of `NAMES`."""
    box = spaces.Box(-1, 1, (3,))
    shown_and_taken = {
        "picture": (spaces.Box(0, 255, (64, 64, 3), np.uint8), spaces.Discrete(4)),
        "multi_discrete": (box, spaces.MultiDiscrete([3, 2])),
        "alike_discrete": (box, spaces.MultiDiscrete([[3, 3], [3, 3]])),
        "tile": (spaces.Discrete(16), spaces.Discrete(4)),
    }
    if name in shown_and_taken:
        return Replayed(*shown_and_taken[name], length=5)
    return crane() if name == "crane" else gymnasium.make(name)


NAMES = ("CartPole-v1", "Pendulum-v1", "picture", "crane", "multi_discrete", "alike_discrete", "tile")


def stream(name: str, categorical: bool = False) -> StreamEnv:
    """The same environment as TorchRL sees it, with classes as one-hot vectors or as indices."""
    return StreamEnv(GymWrapper(Recorder(environment(name)), categorical_action_encoding=categorical))


def agent_for(name: str, categorical: bool = False, size: Size = TINY, **options: Any) -> Agent:
    """An agent whose actions depend on all that it sees and remembers."""
    env = stream(name, categorical)
    agent = Agent(env.observation_spec, env.full_action_spec, size, **options)
    for key, parameter in agent.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in key), std=0.3)
        elif key.startswith("actor.heads"):
            nn.init.normal_(parameter)
    return agent


def recorded(agent: Agent, length: int, count: int) -> TensorDict:
    """Steps ``[T, N]`` of noise in which episodes start at different times."""
    generator = torch.Generator().manual_seed(0)
    steps = {key: space.random((length, count), generator) for key, space in agent.spaces.items()}
    starts = torch.zeros(length, count, 1, dtype=torch.bool)
    starts[0] = True
    starts[length // 2, 0] = True
    return TensorDict({**steps, "is_init": starts, "reward": torch.zeros(length, count, 1)}, batch_size=[length, count])
