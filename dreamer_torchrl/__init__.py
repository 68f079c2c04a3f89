"""DreamerV3 made of TorchRL parts: exact, fast, whole."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dreamer_torchrl.act import Player
    from dreamer_torchrl.agent import Agent, Policy, build_agent
    from dreamer_torchrl.learner import Learner
    from dreamer_torchrl.objectives import ActorLoss, ValueLoss, WorldModelLoss
    from dreamer_torchrl.optim import LaProp
    from dreamer_torchrl.runs import load
    from dreamer_torchrl.settings import Hyperparameters, Size

_HOMES = {
    "ActorLoss": "objectives",
    "Agent": "agent",
    "Hyperparameters": "settings",
    "LaProp": "optim",
    "Learner": "learner",
    "Player": "act",
    "Policy": "agent",
    "Size": "settings",
    "ValueLoss": "objectives",
    "WorldModelLoss": "objectives",
    "build_agent": "agent",
    "load": "runs",
}

__all__ = [
    "ActorLoss",
    "Agent",
    "Hyperparameters",
    "LaProp",
    "Learner",
    "Player",
    "Policy",
    "Size",
    "ValueLoss",
    "WorldModelLoss",
    "build_agent",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: torch takes seconds, and commands check their words without it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
