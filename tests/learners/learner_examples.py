"""A tiny learner, and what it holds and says, for the tests of an update."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Composite, OneHot, Unbounded

from dreamer_torchrl import Agent, Hyperparameters, Learner, build_agent
from tests.objectives.examples import TINY


def learner_for(
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    observed: Composite | None = None,
    compile: bool = False,
    **options: Any,
) -> Learner:
    """A tiny one whose agent is the same at each call."""
    torch.manual_seed(0)
    observed = Composite(observation=Unbounded((3,))) if observed is None else observed
    agent = build_agent(observed, OneHot(2), TINY, dtype=dtype)
    return Learner(agent, Hyperparameters(**{"imagination_length": 3, "warmup": 0, **options}), seed, compile)


def weights(agent: Agent) -> TensorDict:
    return TensorDict(dict(agent.named_parameters())).data.clone()


def losses_of(batch: TensorDictBase, **options: Any) -> TensorDict:
    """Of the same tiny agent and the same noise at each call."""
    learner = learner_for(**options)
    return learner.losses(batch, learner.draw_noise(*batch.shape))[0].detach()
