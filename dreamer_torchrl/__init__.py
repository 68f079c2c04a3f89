"""DreamerV3 made of TorchRL parts: exact, fast, whole."""

from dreamer_torchrl.agent import Agent, Policy, Size, build_agent
from dreamer_torchrl.learner import Hyperparameters, Learner
from dreamer_torchrl.objectives import ActorLoss, ValueLoss, WorldModelLoss
from dreamer_torchrl.optim import LaProp

__all__ = [
    "ActorLoss",
    "Agent",
    "Hyperparameters",
    "LaProp",
    "Learner",
    "Policy",
    "Size",
    "ValueLoss",
    "WorldModelLoss",
    "build_agent",
]
