"""A tiny learner, and which of its parts a loss teaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchrl.data import Composite, OneHot, Unbounded

from dreamer_torchrl import Agent, Hyperparameters, Learner, Size

TINY = Size(belief=16, hidden=8, stochastic=4, classes=3, blocks=4, depth=2, units=8)


def tiny_learner(**hyperparameters: Any) -> Learner:
    """A learner whose every weight, also of the heads that start at zero, says something."""
    agent = Agent(Composite(observation=Unbounded((3,))), OneHot(2), TINY)
    with torch.no_grad():
        for parameter in agent.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return Learner(agent, Hyperparameters(imagination_length=3, **hyperparameters))


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
