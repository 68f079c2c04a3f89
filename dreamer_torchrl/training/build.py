"""What a run is made of: from settings to environments, agent, learner and replay."""

from __future__ import annotations

import traceback
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dreamer_torchrl.agents.agent import Agent, build_agent
from dreamer_torchrl.agents.backend import attach, decide
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.collectors.stream_env import StreamEnv
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.config.checks import ConfigError, make_part
from dreamer_torchrl.config.labels import environment_name
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.data.prioritized import PrioritizedSampler
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.data.samplers import MixedSampler, OnlineSampler, RecencySampler, StreamSampler
from dreamer_torchrl.envs import make_env
from dreamer_torchrl.learners.learner import Learner


def seed_for(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run; different purposes share no random numbers."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1)[0] >> 1)


def choose_device(name: str) -> torch.device:
    """``auto`` is a GPU if there is one."""
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        remedy = "leave it at auto, or install a torch for the GPU that is there"
        gpus = f"{count or 'no'} GPU{'s' * (count > 1)}"
        raise ConfigError(f"device={name}, but torch {torch.__version__} sees {gpus}: {remedy}.")
    return device


def stream_env(family: str, options: Mapping[str, Any], repeat: int, entropy: int, index: int) -> StreamEnv:
    """One environment as a stream; a plain function, so that another process can call it."""
    return StreamEnv(make_env(family, options), repeat, (entropy, index), index)


def make_envs(settings: Settings, purpose: str, count: int, film: bool = False) -> StreamEnvs:
    """Environments of a run, whose episodes are those of this ``purpose``; those for a film are in this process."""
    env, makers = settings.env, []
    for index in range(count):
        options = dict(env.options, render=True) if film and index == 0 and env.family != "custom" else env.options
        entropy = seed_for(settings.seed, purpose)
        makers.append(partial(stream_env, env.family, options, env.action_repeat, entropy, index))
    try:
        return StreamEnvs(makers, "serial" if film else env.workers, env.step_timeout)
    except ValueError:  # its message names the remedy
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"The environment cannot be made: {type(error).__name__}: {error} ({last.filename}, line {last.lineno})."
        ) from error


def specs_of(envs: StreamEnvs) -> Specs:
    """Of one environment."""
    return Specs(envs.observation_spec_unbatched, envs.full_action_spec_unbatched, envs.bounds)


def make_agent(settings: Settings, envs: StreamEnvs | Specs, device: str | None = None) -> Agent:
    """The run's agent with its initial weights; kernels are used where ``device``, that of the run, can use them."""
    torch.manual_seed(seed_for(settings.seed, "weights"))
    numbers = (settings.size, getattr(torch, settings.dtype), settings.unimix, settings.actor_unimix)
    encoder = settings.agent.encoder and partial(make_part, settings.agent.encoder)
    agent = build_agent(envs.observation_spec, envs.full_action_spec, *numbers, encoder)
    attach(agent, decide(settings.native, choose_device(device or settings.device)))
    return agent


def make_learner(settings: Settings, agent: Agent) -> Learner:
    """The run's learner, of the class that the settings name; it gives priorities where sequences are drawn by them."""
    replay = settings.replay
    part = {name: value for name, value in settings.learner_part.items() if value not in (None, [])}
    if replay.sampler == "prioritized" or (replay.sampler == "online" and replay.fracs.prioritized):
        part = {"priorities": True, **part}
    if settings.cuda_graph is not None:
        if settings.cuda_graph and choose_device(settings.device).type != "cuda":
            raise ConfigError("cuda_graph=true needs a GPU, and this run is on the CPU: leave it at null.")
        part["cuda_graph"] = settings.cuda_graph
    seed = seed_for(settings.seed, "learner")
    return make_part(part, agent, settings.learner, seed, settings.compile, settings.native)


def make_replay(settings: Settings, scratch: Path | None = None) -> Replay:
    """The run's replay, empty; on disk, in ``scratch``, if the settings say so."""
    replay = settings.replay
    return Replay(
        *(replay.capacity, settings.env.num_envs, replay.batch, replay.length, settings.learner.context),
        scratch if replay.storage == "disk" else None,
        seed_for(settings.seed, "replay"),
        most=settings.total_steps,
        sampler=make_sampler(settings),
        prefetch=replay.prefetch,
        pin_memory=choose_device(settings.device).type == "cuda",
        latents=latent_dtype(settings),
    )


def make_sampler(settings: Settings) -> StreamSampler:
    """The sampler of sequences that the settings name."""
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
    """What the replay stores beliefs in."""
    return getattr(torch, settings.replay.latents or ("bfloat16" if settings.size.belief >= LARGE else "float32"))


def exact_latents(settings: Settings) -> bool:
    """Whether checkpoints save latents that have changed again."""
    return (settings.checkpoint.latents or ("stale" if settings.size.belief >= LARGE else "exact")) == "exact"


def make_policy(agent: Agent, seed: int) -> Policy:
    """The acting part of an agent with a generator of its own."""
    generator = torch.Generator(next(agent.parameters()).device).manual_seed(seed)
    return Policy(agent.encoder, agent.rssm, agent.actor, generator)


def dream_title(settings: Settings, step: int) -> str:
    """Title of a prediction video."""
    return f"{environment_name(settings)}: open-loop prediction after {step:,} steps of training"
