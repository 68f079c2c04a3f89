"""Every number and choice of a run, with its type and what is possible; plain values, no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any, Literal


@dataclass(frozen=True)
class Size:
    """The numbers that make an agent small or large; named ones lie in ``configs/size``.

    Example:
        >>> Size.named("size12m").belief
        2048
    """

    belief: int
    hidden: int
    stochastic: int
    classes: int
    blocks: int
    depth: int
    units: int

    @classmethod
    def named(cls, name: str) -> Size:
        """Read ``configs/size/<name>.yaml``."""
        folder = resources.files("dreamer_torchrl.configs").joinpath("size")
        file = folder.joinpath(f"{name}.yaml")
        if not file.is_file():
            known = sorted((path.name.removesuffix(".yaml") for path in folder.iterdir()), key=lambda n: (len(n), n))
            raise ValueError(f"Unknown size {name!r}: there are {', '.join(known)}.")
        # Without a YAML library, which is not there where only torch and TorchRL are.
        values = dict(re.findall(r"^(\w+): *(\d+)", file.read_text(), re.MULTILINE))
        return cls(**{field.name: int(values[field.name]) for field in fields(cls)})


@dataclass(frozen=True)
class Hyperparameters:
    """The official numbers, all of them; official names in brackets where they differ."""

    context: int = 1  # replay_context
    imagination_length: int = 15  # imag_length
    horizon: float = 333
    discount_in_continue: bool = True  # contdisc
    return_lambda: float = 0.95  # imag_loss.lam
    replay_lambda: float = 0.95  # repl_loss.lam
    slow_target: bool = False  # imag_loss.slowtar
    slow_scale: float = 1.0  # imag_loss.slowreg and repl_loss.slowreg
    slow_rate: float = 0.02  # slowvalue.rate
    entropy_scale: float = 3e-4  # imag_loss.actent
    free_nats: float = 1.0
    reward_grad: bool = True
    replay_value_grad: bool = True  # repval_grad
    return_percentiles: tuple[float, float] = (5.0, 95.0)  # retnorm.perclo, perchi
    return_rate: float = 0.01  # retnorm.rate
    return_limit: float = 1.0  # retnorm.limit
    reconstruction_scale: float = 1.0  # loss_scales.rec
    reward_scale: float = 1.0  # loss_scales.rew
    continue_scale: float = 1.0  # loss_scales.con
    dynamics_scale: float = 1.0  # loss_scales.dyn
    representation_scale: float = 0.1  # loss_scales.rep
    actor_scale: float = 1.0  # loss_scales.policy
    value_scale: float = 1.0  # loss_scales.value
    replay_value_scale: float = 0.3  # loss_scales.repval
    learning_rate: float = 4e-5  # opt.lr
    betas: tuple[float, float] = (0.9, 0.999)  # opt.beta1, beta2
    eps: float = 1e-20  # opt.eps
    clip: float = 0.3  # opt.agc
    warmup: int = 1000  # opt.warmup


@dataclass(frozen=True)
class EnvironmentSettings:
    """Which environment, how many of it, and where they run."""

    family: Literal["gym", "atari", "dmc", "custom"]
    options: Mapping[str, Any]  # what the family's own function takes
    num_envs: int = 1
    workers: Literal["serial", "processes", "async"] = "serial"
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
    dream: float = 60.0
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the environment, where evaluations differ


@dataclass(frozen=True)
class CheckpointSettings:
    """How often a run is saved and how many checkpoints stay."""

    every: float = 60.0
    keep: int = 2


@dataclass(frozen=True)
class LogSettings:
    """How often scalars are written, and whether TensorBoard gets them too."""

    every: float = 5.0
    tensorboard: bool = False


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
