"""Environments and agents for the tests of the policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import nn
from torchrl.data import Bounded, Categorical, Composite, MultiCategorical, MultiOneHot, OneHot, Unbounded
from torchrl.envs import ActionScaling, Compose, EnvBase, GymEnv, InitTracker, SerialEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType

from dreamer_torchrl import Agent, build_agent
from tests.objectives.examples import TINY

RANDOM, DETERMINISTIC = ExplorationType.RANDOM, ExplorationType.DETERMINISTIC
every_exploration = pytest.mark.parametrize("exploration", [RANDOM, DETERMINISTIC], ids=["random", "deterministic"])


class Crane(EnvBase):
    """Sees an image, floats and a class under nested keys, and is moved by five kinds of action at once.

    Episodes have ``length`` steps; the observations are noise.
    """

    def __init__(self, length: int = 5):
        super().__init__()
        self.length = length
        self.observation_spec = Composite(
            camera=Composite(front=Bounded(0, 255, (48, 48, 3), dtype=torch.uint8)),
            hook=Composite(position=Unbounded((2,)), loaded=Categorical(2)),
        )
        self.action_spec = Composite(
            arm=Composite(joints=Bounded(-1, 1, (2,))),
            gear=Categorical(3),
            horn=OneHot(4),
            levers=MultiCategorical([2, 3]),
            pedals=MultiOneHot([2, 3]),
        )
        self.reward_spec = Unbounded((1,))

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: Any) -> TensorDictBase:
        self.steps = 0
        return self.observation_spec.rand()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps += 1
        ended = torch.tensor([self.steps == self.length])
        return self.observation_spec.rand().update({"reward": torch.ones(1), "terminated": ended, "done": ended})

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(0 if seed is None else seed)


def environment(name: str = "CartPole-v1", agent: Agent | None = None, count: int | None = None) -> TransformedEnv:
    """One environment, or ``count`` in a row, with the agent's primer if one is given."""
    make: Callable[[], EnvBase] = Crane if name == "Crane" else lambda: GymEnv(name)
    transforms = [ActionScaling()] if name == "Pendulum-v1" else []
    transforms += [InitTracker()] + ([agent.primer()] if agent else [])
    return TransformedEnv(make() if count is None else SerialEnv(count, make), Compose(*transforms))


def agent_for(env: EnvBase, **options: Any) -> Agent:
    """An agent whose biases are not 0, or else a fresh belief is 0 and shows nothing; its actions are clear choices."""
    agent = build_agent(env.observation_spec_unbatched, env.full_action_spec_unbatched, TINY, **options)
    for name, parameter in agent.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
        elif name.startswith("actor.heads"):
            nn.init.normal_(parameter)
    return agent


def seen(agent: Agent, *batch: int) -> TensorDict:
    """Observations of a first step, noise."""
    generator = torch.Generator().manual_seed(0)
    steps = {key: space.random(batch, generator) for key, space in agent.spaces.items()}
    return TensorDict({**steps, "is_init": torch.ones(*batch, 1, dtype=torch.bool)}, batch_size=batch)
