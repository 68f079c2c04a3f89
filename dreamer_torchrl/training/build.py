"""What a run is made of: from settings to environments, agent, learner, replay and loggers; and notes about these."""

from __future__ import annotations

import os
import traceback
import zlib
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamer_torchrl.agents import backend
from dreamer_torchrl.agents.agent import Agent, build_agent
from dreamer_torchrl.agents.device_policy import DevicePolicy
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.checkpoint.manifest import library_versions
from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.collectors.stream_env import stream_env
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.config.checks import ConfigError, make_logger, make_part
from dreamer_torchrl.config.compose import Configuration, environment_name, wandb_place
from dreamer_torchrl.config.overrides import experiment_of
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.data.prioritized import PrioritizedSampler
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.data.samplers import MixedSampler, OnlineSampler, RecencySampler, StreamSampler
from dreamer_torchrl.learners.learner import Learner
from dreamer_torchrl.learners.losses import can_compile
from dreamer_torchrl.modules.decoder import NoDecoder
from dreamer_torchrl.modules.spaces import Continuous, key_name
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.record.loggers import JsonLinesLogger, ResumedTensorboardLogger
from dreamer_torchrl.record.metrics import Metrics
from dreamer_torchrl.record.video import can_encode
from dreamer_torchrl.record.wandb import WandbThread
from dreamer_torchrl.training.ranks import RunRanks


def seed_for(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run; different purposes share no random numbers."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0] >> 1)


def choose_device(name: str) -> torch.device:
    count = torch.cuda.device_count()
    if name == "auto":
        local = os.environ.get("LOCAL_RANK")  # of torchrun
        name = f"cuda:{local}" if count and local else "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps, but torch sees no GPU of a Mac: leave it at auto.")
    if device.type == "cuda" and (device.index or 0) >= count:
        told = f"device={name}, but torch {torch.__version__} sees {count or 'no'} GPU{'s' * (count > 1)}"
        raise ConfigError(f"{told}: leave it at auto, or install a torch for the GPU that is there.")
    return device


def make_envs(settings: Settings, purpose: str, count: int, film: bool = False, first: int = 0) -> StreamEnvs:
    """Environments of a run, whose episodes are those of this ``purpose``; those for a film are in this process.

    They are those from number ``first`` of all.
    """
    env, makers = settings.env, []
    if env.family == "none":
        raise ConfigError("env=none: this run learned from recorded data alone, there is nothing to act in.")
    for index in range(first, first + count):
        options = dict(env.options, render=True) if film and index == 0 and env.family != "custom" else env.options
        entropy = seed_for(settings.seed, purpose)
        makers.append(partial(stream_env, env.family, options, env.action_repeat, entropy, index))
    try:
        return StreamEnvs(makers, "serial" if film else env.workers, env.step_timeout)
    except ValueError:  # its message names the remedy
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
        raise ConfigError(f"The environment cannot be made: {told}.") from error


def make_agent(settings: Settings, envs: StreamEnvs | Specs, device: str | None = None) -> Agent:
    """The run's agent with its initial weights; kernels are used where ``device``, that of the run, can use them."""
    torch.manual_seed(seed_for(settings.seed, "weights"))
    agent = agent_of(settings, envs)
    backend.attach(agent, backend.decide(settings.native, choose_device(device or settings.device)))
    return agent


def agent_of(settings: Settings, envs: StreamEnvs | Specs) -> Agent:
    """An agent of the run's parts, with weights as torch draws them now, on its default device."""
    numbers = (settings.size, getattr(torch, settings.dtype), settings.unimix, settings.actor_unimix)
    parts = {name: partial(make_part, part) for name, part in settings.agent.parts.items()}
    if "layers" in parts:
        parts["layers"] = parts["layers"]()
    if not settings.representation.decoder:
        parts["decoder"] = NoDecoder
    specs = envs.observation_spec, envs.full_action_spec
    return build_agent(*specs, *numbers, prior_layers=settings.agent.prior_layers, **parts)


def make_learner(settings: Settings, agent: Agent, ranks: RunRanks | None = None) -> Learner:
    """The run's learner, of the class that the settings name; it gives priorities where sequences are drawn by them."""
    replay = settings.replay
    part = {name: value for name, value in settings.learner_part.items() if value not in (None, [])}
    if replay.sampler == "prioritized" or (replay.sampler == "online" and replay.fracs.prioritized):
        part = {"priorities": True, **part}
    if settings.cuda_graph is not None:
        if settings.cuda_graph and choose_device(settings.device).type != "cuda":
            raise ConfigError("cuda_graph=true needs a GPU, and this run is on the CPU: leave it at null.")
        part["cuda_graph"] = settings.cuda_graph
    more = [one for one in (settings.representation.term, settings.exploration.behaviour) if one is not None]
    if more:
        part["extra_losses"] = [*part.get("extra_losses", []), *more]
    seed = seed_for(settings.seed, ranks.purpose("learner") if ranks else "learner")
    if ranks and ranks.size > 1:
        part["ranks"] = ranks
    return make_part(part, agent, settings.learner, seed, settings.compile, settings.native)


def most_steps(settings: Settings, recorded: int) -> int:
    """How many steps the run will ever store: recorded ones, and those of its environments."""
    return recorded + settings.end - settings.updates_before


def make_replay(settings: Settings, scratch: Path | None = None, recorded: int = 0, purpose: str = "replay") -> Replay:
    """The run's replay, empty; on disk, in ``scratch``, or on the GPU, if the settings say so."""
    replay = settings.replay
    return Replay(
        *(replay.capacity, settings.env.num_envs, replay.batch, replay.length, settings.learner.context),
        scratch if replay.storage == "disk" else None,
        seed_for(settings.seed, purpose),
        most=most_steps(settings, recorded),
        sampler=make_sampler(settings),
        prefetch=replay.prefetch,
        pin_memory=choose_device(settings.device).type == "cuda",
        latents=latent_dtype(settings),
        device=replay_device(settings),
    )


def replay_device(settings: Settings) -> torch.device:
    if settings.replay.storage != "cuda":
        return torch.device("cpu")
    device = choose_device(settings.device)
    if device.type != "cuda":
        raise ConfigError(f"replay.storage=cuda needs a GPU, and this run is on {device}: leave it at memory.")
    return device


def make_sampler(settings: Settings) -> StreamSampler:
    replay, streams = settings.replay, settings.env.num_envs
    slice_len = replay.length + settings.learner.context
    kinds = {"uniform": StreamSampler, "prioritized": PrioritizedSampler}
    kinds["recency"] = partial(RecencySampler, capacity=replay.capacity)
    if replay.sampler in kinds:
        return kinds[replay.sampler](slice_len, streams)
    fractions = {name: fraction for name, fraction in asdict(replay.fracs).items() if fraction}
    samplers = {name: kinds[name](slice_len, streams) for name in fractions}
    then = MixedSampler(samplers, fractions) if len(samplers) > 1 else samplers.popitem()[1]
    return OnlineSampler(slice_len, streams, then=then)


LARGE = 2048  # the belief of size12m: from there on latents are stored in bfloat16 and saved once by default


def latent_dtype(settings: Settings) -> torch.dtype:
    return getattr(torch, settings.replay.latents or ("bfloat16" if settings.size.belief >= LARGE else "float32"))


def exact_latents(settings: Settings) -> bool:
    return (settings.checkpoint.latents or ("stale" if settings.size.belief >= LARGE else "exact")) == "exact"


def make_policy(agent: Agent, seed: int, noise: float = 0.0, capture: bool = True) -> Policy:
    """The agent's policy with random numbers of its own, for data on the CPU; on a GPU ``capture`` allows graphs."""
    device = next(agent.parameters()).device
    parts = agent.encoder, agent.rssm, agent.actor, torch.Generator(device).manual_seed(seed), noise
    return Policy(*parts) if device.type == "cpu" else DevicePolicy(*parts, capture=capture and device.type == "cuda")


def dream_title(settings: Settings, step: int) -> str:
    return f"{environment_name(settings)}: open-loop prediction after {step:,} steps of training"


def make_metrics(
    configuration: Configuration, run_dir: Path, console: Console, resumed_at: int | None, hours: Callable[[], float]
) -> Metrics:
    settings, wandb = configuration.settings, configuration.settings.wandb
    loggers: list[Any] = [console, JsonLinesLogger(run_dir / "metrics.jsonl")]
    if settings.log.tensorboard:
        loggers.append(ResumedTensorboardLogger("tensorboard", str(run_dir), resumed_at))
    loggers += [make_logger(name, entry, run_dir) for name, entry in settings.log.loggers.items()]
    if wandb.mode != "disabled":
        config = {**configuration.values, "experiment": experiment_of(configuration.overrides) or "laptop"}
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
    """A sentence about each observation that has the shape of an image and is a vector of floats to the agent."""
    found = []
    for key, space in agent.spaces.items():
        shape = space.shape
        if isinstance(space, Continuous) and len(shape) == 3 and sorted(shape)[1] >= 8 and min(shape[0], shape[2]) <= 4:
            given = f"{key_name(key)!r} {list(shape)} of {str(space.dtype).removeprefix('torch.')}"
            is_vector = f"is a vector of {space.size:,} numbers here: for an image give uint8, 0 to 255."
            found.append(f"Observation {given} {is_vector}")
    return found
