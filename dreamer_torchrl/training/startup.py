"""What a training makes and prints once at its start: its loggers, and notes about backends and likely mistakes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dreamer_torchrl.agents import backend
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.checkpoint.manifest import library_versions
from dreamer_torchrl.config.checks import make_logger
from dreamer_torchrl.config.compose import Configuration
from dreamer_torchrl.config.labels import environment_name, wandb_place
from dreamer_torchrl.config.overrides import experiment_of
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.learners.losses import can_compile
from dreamer_torchrl.modules.spaces import Continuous, key_name
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.record.loggers import JsonLinesLogger, ResumedTensorboardLogger
from dreamer_torchrl.record.metrics import Metrics
from dreamer_torchrl.record.video import can_encode
from dreamer_torchrl.record.wandb import WandbThread


def make_metrics(
    configuration: Configuration, run_dir: Path, console: Console, resumed_at: int | None, hours: Callable[[], float]
) -> Metrics:
    """All loggers that the settings ask for."""
    settings, wandb = configuration.settings, configuration.settings.wandb
    loggers: list[Any] = [console, JsonLinesLogger(run_dir / "metrics.jsonl")]
    if settings.log.tensorboard:
        loggers.append(ResumedTensorboardLogger("tensorboard", str(run_dir), resumed_at))
    loggers += [make_logger(name, entry, run_dir) for name, entry in settings.log.loggers.items()]
    if wandb.mode != "disabled":
        config = {**configuration.values, "experiment": experiment_of(configuration.overrides)}
        config |= {"environment": environment_name(settings), "versions": library_versions()}
        place = wandb_place(configuration, run_dir)
        loggers.append(WandbThread(run_dir, wandb.mode, place, config, console.note, wandb.artifact, hours))
    return Metrics(loggers, console.note)


def notes_at_start(settings: Settings, agent: Agent, device: torch.device) -> list[str]:
    """Lines for the console: kernels, compilation and video encoder as far as they matter to this run."""
    notes = [backend.status(settings.native, device)] if device.type == "cpu" else []
    if device.type == "cuda" and settings.compile is None and not can_compile(device):
        notes.append("Networks are not compiled, updates are slower: that takes Triton, a C compiler and Python.h.")
    if settings.eval.every and (settings.eval.video or settings.eval.dream) and not can_encode():
        notes.append("There is no H.264 encoder: videos are GIFs. `python -m dreamer_torchrl.doctor` says what to do.")
    return [*notes, *float_images(agent)]


def float_images(agent: Agent) -> list[str]:
    """A sentence about each observation that has the shape of an image and is a vector of floats to the agent.

    Example:
        >>> from torchrl.data import Composite, OneHot, Unbounded
        >>> from dreamer_torchrl.agents.agent import build_agent
        >>> agent = build_agent(Composite(camera=Unbounded((16, 16, 3))), OneHot(2), "nano")
        >>> print(*float_images(agent))
        Observation 'camera' [16, 16, 3] of float32 is a vector of 768 numbers here: for an image give uint8, 0 to 255.
    """
    found = []
    for key, space in agent.spaces.items():
        shape = space.shape
        if isinstance(space, Continuous) and len(shape) == 3 and sorted(shape)[1] >= 8 and min(shape[0], shape[2]) <= 4:
            found.append(
                f"Observation {key_name(key)!r} {list(shape)} of {str(space.dtype).removeprefix('torch.')} is a vector "
                f"of {space.size:,} numbers here: for an image give uint8, 0 to 255."
            )
    return found
