"""Which TorchRL collector runs the streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Literal, Protocol

from torchrl.collectors import AsyncBatchedCollector, BaseCollector, Collector, MultiSyncCollector
from torchrl.envs.utils import ExplorationType

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.agents.device_policy import DevicePolicy
from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.collectors.episodes import Episodes
from dreamer_torchrl.collectors.stream_envs import StreamEnvs

Kind = Literal["sync", "async", "multi_sync", "ray"]


class Choice(Protocol):
    """The settings of a collector."""

    kind: Kind
    actors: int  # of Ray
    address: str | None  # of Ray's cluster


def make_collector(
    chosen: Choice,
    envs: StreamEnvs,
    agent: Agent,
    policy: Policy,
    episodes: Episodes,
    updates: Callable[[], int] = int,
) -> BaseCollector:
    """A collector of an agent's steps, which begins at the states of ``episodes``.

    - ``sync``: `torchrl.collectors.Collector` acts in all environments, then yields ``[N, 1]`` steps.
    - ``async``: in `AsyncBatchedCollector` a thread steps each environment, another acts, and the learner learns
      meanwhile; yields steps ``[N]`` of any streams.
    - ``multi_sync``: the processes of `MultiSyncCollector` step and act, each in its share of the environments.
    - ``ray``: `RayActors` on this or other machines; ``updates`` tells it how many the learner has done.

    All but the first act with a copy of the weights: ``collector.update_policy_weights_(policy)`` renews it.
    """
    kind = chosen.kind
    envs.restore(episodes.states)
    envs.latents = agent.latent_spec.zero()
    if kind == "ray":
        from dreamer_torchrl.collectors.ray_actors import RayActors  # Ray is an extra

        return RayActors(envs, policy, episodes, chosen.actors, chosen.address, updates)
    count = len(envs.makers)
    common = {"frames_per_batch": count, "postproc": episodes, "exploration_type": ExplorationType.RANDOM}
    if kind == "sync":
        if isinstance(policy, DevicePolicy):
            policy.carries = True
            policy.forget()
        common |= {"use_buffers": False, "track_traj_ids": False}
        return Collector(envs, policy, trust_policy=True, auto_register_policy_transforms=False, **common)
    copy = type(policy)(*deepcopy((policy.encoder, policy.rssm, policy.actor)))
    if kind == "async":
        # A thread acts, in this process: no second copy of torch, and messages about failures arrive.
        makers = [partial(envs.part, [index], batched=False) for index in range(count)]
        server = {"env_backend": "threading", "transport": "driver", "policy_version_key": None}
        return AsyncBatchedCollector(makers, policy=copy, **server, **common)
    processes = max(number for number in range(1, (os.cpu_count() or 1) + 1) if count % number == 0)
    share = count // processes
    makers = [partial(part, envs, range(first, first + share)) for first in range(0, count, share)]
    return MultiSyncCollector(makers, copy, trust_policy=True, auto_register_policy_transforms=False, **common)


def part(envs: StreamEnvs, which: Sequence[int]) -> StreamEnvs:
    """A process's share of the environments, whose failures it prints."""
    own = envs.part(which)
    own.report = partial(print, file=sys.stderr)
    return own
