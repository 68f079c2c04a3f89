"""What the tests of the losses share: recorded tables, losses made by hand, a tiny learner, and what a loss teaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrl.data import Composite, OneHot, Unbounded

from dreamer_torchrl import Agent, Hyperparameters, Learner, Size, WorldModelLoss
from dreamer_torchrl.learners.learner import MakeOptimizer
from dreamer_torchrl.modules import ObserveSequence, TwoHotDist
from dreamer_torchrl.objectives.common import ExtraLoss

TINY = Size(belief=16, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8)


def golden(name: str, folder: str = "golden") -> dict[str, Tensor]:
    """A table of the official functions; those of Dreamer V1 and V2 are in ``golden_family``."""
    with np.load(Path(__file__).parents[1] / folder / name, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def part(table: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in table.items() if key.startswith(prefix)}


def tiny_agent() -> Agent:
    """An agent whose every weight, also of the heads that start at zero, says something."""
    agent = Agent(Composite(observation=Unbounded((3,))), OneHot(2), TINY)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return agent


def world_model_loss(agent: Agent, **options: Any) -> WorldModelLoss:
    """Made of an agent's parts, without a learner."""
    return WorldModelLoss(
        agent.encoder.tensordict_module(),
        ObserveSequence(agent.rssm).tensordict_module(),
        agent.decoder.tensordict_module(),
        agent.reward.tensordict_module(out_keys=("reward_logits", "predicted_reward")),
        agent.continuation.tensordict_module(),
        agent.spaces,
        agent.action_space,
        agent.rssm.latent,
        **options,
    )


def tiny_learner(
    optimizer: MakeOptimizer | None = None,
    extra_losses: Sequence[ExtraLoss] = (),
    priorities: bool = False,
    **hyperparameters: Any,
) -> Learner:
    h = Hyperparameters(imagination_length=3, **hyperparameters)
    return Learner(tiny_agent(), h, optimizer=optimizer, extra_losses=extra_losses, priorities=priorities)


def taught_by(loss: Tensor, agent: Agent) -> set[str]:
    """The parts of an agent that a loss has a gradient for."""
    agent.zero_grad()
    loss.backward()
    return {
        name
        for name, module in agent.named_children()
        for parameter in module.parameters()
        if parameter.grad is not None and parameter.grad.count_nonzero()
    }


class RecordedCritic(nn.Module):
    """Answers from a table of logits; the features are row numbers."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.flatten(0, -2).clone())

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logits[features.squeeze(-1).long()]
        return logits, TwoHotDist(logits).mean
