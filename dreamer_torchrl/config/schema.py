"""Every setting with its type, limits and default, checked by pydantic; ``configs/config.yaml`` says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool
from pydantic.dataclasses import dataclass

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.learners.hyperparameters import Hyperparameters
from dreamer_torchrl.limits import Within

LEARNER = {"_target_": "dreamer_torchrl.learners.learner.Learner", "optimizer": None, "extra_losses": []}
"""The class of the learner, and those of its arguments that are parts."""

IMAGE_BLOCKS = 8  # into which the decoder of images splits the belief
CHECKED = ConfigDict(extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

Count = Annotated[int, Within(ge=1)]
CountOrNone = Annotated[int, Within(ge=0)]
Share = Annotated[float, Within(ge=0, le=1)]
Seconds = Annotated[float, Within(ge=0, allow_inf_nan=True)]
Label = Annotated[str, Field(min_length=1, max_length=128)]  # as long as W&B takes
Tag = Annotated[str, Field(min_length=1, max_length=64)]
Part = Mapping[str, Any]  # `_target_`, a dotted name of a class or function, and arguments of it


@dataclass(frozen=True, config=CHECKED)
class EnvironmentSettings:
    family: Literal["gym", "atari", "dmc", "custom", "none"]
    options: Mapping[str, Any]  # what the family's own function takes
    num_envs: Annotated[int, Within(ge=1, le=4096)] = 1
    workers: Literal["serial", "processes"] = "serial"
    action_repeat: Count = 1
    frames_per_action: Count = 1
    step_timeout: Annotated[float, Within(ge=1)] = 60.0

    def __post_init__(self) -> None:
        image = self.options.get("image", True) and self.options.get("size")
        if image and (image % 16 or not 48 <= image <= 256):
            raise ValueError(f"size={image} is impossible: images have a side of 48, 64, 80 and so on up to 256.")
        skip = self.options.get("frame_skip")
        if skip is not None and self.frames_per_action != skip:
            reason = f"an action of this game lasts {skip} frames. Leave that out, and set env.frame_skip"
            raise ValueError(f"frames_per_action={self.frames_per_action} is impossible: {reason}.")

    @property
    def frames_per_step(self) -> int:
        return self.action_repeat * self.frames_per_action


@dataclass(frozen=True, config=CHECKED)
class AgentSettings:
    encoder: Part | None = None
    decoder: Part | None = None
    layers: Part | None = None
    core: Part | None = None
    latent: Part | None = None
    prior_layers: CountOrNone = 2
    reward: Part | None = None
    continuation: Part | None = None
    value: Part | None = None
    actor: Part | None = None

    @property
    def parts(self) -> dict[str, Part]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Mapping)}


@dataclass(frozen=True, config=CHECKED)
class ExplorationSettings:
    noise: Share = 0.0
    until: CountOrNone = 0
    behaviour: Part | None = None


@dataclass(frozen=True, config=CHECKED)
class RepresentationSettings:
    decoder: StrictBool = True
    term: Part | None = None


@dataclass(frozen=True, config=CHECKED)
class CollectorSettings:
    kind: Literal["sync", "async", "multi_sync", "ray"] = "sync"
    sync_every: Count = 1
    actors: Count = 2
    address: str | None = None


@dataclass(frozen=True, config=CHECKED)
class SamplerFractions:
    uniform: Share = 1.0
    prioritized: Share = 0.0
    recency: Share = 0.0

    def __post_init__(self) -> None:
        total = self.uniform + self.prioritized + self.recency
        if abs(total - 1) > 1e-6:
            raise ValueError(f"uniform, prioritized and recency are {total:g} in sum: give fractions of 1.")


@dataclass(frozen=True, config=CHECKED)
class ReplaySettings:
    capacity: Count = 1_000_000
    batch: Count = 4
    length: Annotated[int, Within(ge=2)] = 32
    storage: Literal["memory", "disk", "cuda"] = "memory"
    sampler: Literal["online", "uniform", "prioritized", "recency"] = "online"
    fracs: SamplerFractions = field(default_factory=SamplerFractions)
    latents: Literal["float32", "bfloat16"] | None = None
    prefetch: CountOrNone = 0


@dataclass(frozen=True, config=CHECKED)
class EvaluationSettings:
    every: CountOrNone = 5_000
    episodes: Count = 20
    num_envs: Count = 10
    stop_at: Annotated[float, Within()] | None = None
    deterministic: StrictBool = False
    video: StrictBool = False
    keep_videos: Count = 20
    dream: Seconds = 60.0
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=CHECKED)
class CheckpointSettings:
    every: Seconds = 60.0
    keep: Count = 2
    latents: Literal["exact", "stale"] | None = None


@dataclass(frozen=True, config=CHECKED)
class LogSettings:
    every: Seconds = 5.0
    report: StrictBool = True
    tensorboard: StrictBool = False
    loggers: Mapping[str, Part] = field(default_factory=dict)


@dataclass(frozen=True, config=CHECKED)
class WandbSettings:
    mode: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "dreamer_torchrl"
    entity: str | None = None
    name: Label | None = None
    group: Label | None = None
    tags: tuple[Tag, ...] | None = None
    artifact: StrictBool = False


@dataclass(frozen=True, config=CHECKED)
class Settings:
    run_dir: str
    env: EnvironmentSettings
    size: Size
    seed: Annotated[int, Within(ge=0, lt=2**63)] = 0
    total_steps: Count = 100_000
    train_ratio: Annotated[float, Within(ge=0)] = 16.0
    prefill: CountOrNone = 10_000
    offline: Annotated[str, Field(min_length=1)] | None = None
    offline_updates: Count = 20_000
    offline_only: StrictBool = True
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: StrictBool | None = None
    native: StrictBool | None = None
    cuda_graph: StrictBool | None = None
    threads: Count | None = 1
    unimix: Share = 0.01
    actor_unimix: Share = 0.0
    agent: AgentSettings = field(default_factory=AgentSettings)
    representation: RepresentationSettings = field(default_factory=RepresentationSettings)
    exploration: ExplorationSettings = field(default_factory=ExplorationSettings)
    collector: CollectorSettings = field(default_factory=CollectorSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    learner: Hyperparameters = field(default_factory=Hyperparameters)
    learner_part: Part = field(default_factory=lambda: LEARNER)
    eval: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=LogSettings)
    wandb: WandbSettings = field(default_factory=WandbSettings)

    def __post_init__(self) -> None:
        if self.size.belief % IMAGE_BLOCKS:
            raise ValueError(f"size.belief={self.size.belief} is impossible: give a multiple of {IMAGE_BLOCKS}.")
        exploring = self.exploration
        if exploring.until and (exploring.behaviour is None or self.collector.kind != "sync"):
            needed = "takes exploration=plan2explore or another behaviour, and collector=sync"
            raise ValueError(f"exploration.until={exploring.until} is impossible: it {needed}.")
        if self.env.family == "none":
            if not (self.offline and self.offline_only):
                raise ValueError("env=none is impossible: there is nothing to act in. It takes offline=PATH, alone.")
            if self.eval.every:
                raise ValueError(f"eval.every={self.eval.every} is impossible: env=none has nothing to evaluate in.")
        if self.size.depth % 2:
            raise ValueError(f"size.depth={self.size.depth} is impossible: give an even number.")
        if self.eval.arguments and "arguments" not in self.env.options:
            raise ValueError("eval.arguments is impossible: this environment takes no arguments, as env=gym does.")

    @property
    def updates_per_step(self) -> float:
        return self.train_ratio / (self.replay.batch * self.replay.length)

    @property
    def updates_before(self) -> int:
        """Updates of the offline phase."""
        return self.offline_updates if self.offline else 0

    @property
    def end(self) -> int:
        """Where the run ends: updates of the offline phase, and then environment steps."""
        return self.updates_before + (0 if self.offline and self.offline_only else self.total_steps)

    @property
    def first_update(self) -> int:
        """The step at which updates begin: a batch is there, or ``prefill`` steps are, or recorded ones."""
        return 0 if self.offline else max(self.prefill, self.replay.batch * self.replay.length)
