"""Every number and choice of a run, with its type and what is possible; plain values, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.learners.hyperparameters import Hyperparameters


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which environment, how many of it, and where they run."""

    family: Literal["gym", "atari", "dmc", "custom"]
    options: Mapping[str, Any]  # what the family's own function takes
    num_envs: int = 1
    workers: Literal["serial", "processes"] = "serial"
    action_repeat: int = 1
    frames_per_action: int = 1  # what the family skips by itself
    step_timeout: float = 60.0

    @property
    def frames_per_step(self) -> int:
        """How many frames one decision lasts."""
        return self.action_repeat * self.frames_per_action


@dataclass(frozen=True)
class ReplaySettings:
    """How much is remembered and what a batch looks like."""

    capacity: int = 1_000_000
    batch: int = 16
    length: int = 64
    storage: Literal["memory", "disk"] = "memory"


@dataclass(frozen=True)
class EvaluationSettings:
    """How often and how a run is evaluated on environments of its own."""

    every: int = 10_000
    episodes: int = 20
    num_envs: int = 10
    stop_at: float | None = None
    deterministic: bool = False
    video: bool = False
    keep_videos: int = 20  # of each kind, the newest
    dream: float = 60.0
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the environment, where evaluations differ


@dataclass(frozen=True)
class CheckpointSettings:
    """How often a run is saved and how many checkpoints stay."""

    every: float = 60.0
    keep: int = 2


@dataclass(frozen=True)
class LogSettings:
    """How often scalars are written, and which loggers get them beside the console and ``metrics.jsonl``."""

    every: float = 5.0
    tensorboard: bool = False
    loggers: Mapping[str, Any] = field(default_factory=dict)  # `_target_` and arguments of TorchRL loggers


@dataclass(frozen=True)
class WandbSettings:
    """Whether and where Weights & Biases gets the run."""

    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "dreamer_torchrl"
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] | None = None
    artifact: bool = False


@dataclass(frozen=True)
class Settings:
    """A whole run."""

    run_dir: str
    env: EnvironmentSettings
    size: Size
    seed: int = 0
    total_steps: int = 5_000
    train_ratio: float = 128.0
    prefill: int = 0
    collector: Literal["sync", "async", "multi_sync"] = "sync"
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool | None = None
    native: bool | None = None
    threads: int | None = None
    unimix: float = 0.01
    actor_unimix: float = 0.0
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    learner: Hyperparameters = field(default_factory=Hyperparameters)
    eval: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=LogSettings)
    wandb: WandbSettings = field(default_factory=WandbSettings)

    @property
    def updates_per_step(self) -> float:
        """Updates that one environment step earns."""
        return self.train_ratio / (self.replay.batch * self.replay.length)
