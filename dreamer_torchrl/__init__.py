"""DreamerV3 made of TorchRL parts: exact, fast, whole."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "ActorLoss": "objectives",
    "Agent": "agents.agent",
    "ClippedAdam": "learners.adam",
    "Hyperparameters": "learners.hyperparameters",
    "LaProp": "learners.laprop",
    "Learner": "learners.learner",
    "LearnerStepper": "learners.stepper",
    "Player": "agents.player",
    "Policy": "agents.policy",
    "Size": "agents.size",
    "ValueLoss": "objectives",
    "WorldModelLoss": "objectives",
    "build_agent": "agents.agent",
    "load": "training.loading",
    "load_from_hub": "training.hub",
    "push_to_hub": "training.hub",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: torch takes seconds, and commands check their overrides without it."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
