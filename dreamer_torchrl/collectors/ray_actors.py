"""Ray actors that step the streams, each with its share of them and a copy of the policy.

TorchRL's `RayCollector` lets the error of a dead actor end the run, and has no way to make an actor again whose streams
begin where its last steps ended; so Ray is used directly here, with TorchRL's `Collector` inside each actor.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from tensordict import TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs.utils import ExplorationType

from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.collectors.episodes import Episodes
from dreamer_torchrl.collectors.stream_envs import ClusterLost, StreamEnvs, TooManyFailures

STEPS = 4  # of each stream in a call of an actor, which acts with the same weights meanwhile
CHECK = 2.0  # seconds between looks at whether the head of the cluster is there; Ray itself ends the process after 60
MOST_FAILURES, WINDOW = 10, 1000  # of actors, within so many steps; more end the run


Weights = dict[str, dict[str, torch.Tensor]]


class StreamActor:
    """What runs in an actor: some of the streams, and a policy."""

    def __init__(self, envs: StreamEnvs, policy: Policy):
        torch.set_num_threads(1)
        torch.seed()  # else all actors would draw the same numbers
        envs.report = envs.notes.append
        self.envs, self.policy = envs, policy
        how = {"use_buffers": False, "track_traj_ids": False, "exploration_type": ExplorationType.RANDOM}
        how |= {"frames_per_batch": STEPS * len(envs.makers), "trust_policy": True}
        self.batches = iter(Collector(envs, policy, auto_register_policy_transforms=False, **how))

    def process(self) -> int:
        """Its number, by which it can be killed."""
        return os.getpid()

    def collect(self, weights: Weights | None) -> tuple[TensorDictBase, list[str]]:
        """Steps ``[n, STEPS]``, and what was said of environments that failed."""
        for name, values in (weights or {}).items():
            getattr(self.policy, name).load_state_dict(values)
        batch = next(self.batches).clone()
        notes, self.envs.notes[:] = [*self.envs.notes], []
        return batch, notes


class RayActors:
    """A collector: iterate for steps ``[n, STEPS]`` of whichever actor has some.

    An actor works while the learner learns, and gets new weights with its next call. One that died is made anew, and
    its streams go on after their last steps that arrived: the actions of their episodes are repeated.

    Args:
        envs: all streams; the actors get parts of them. Failures of actors are reported to it, too.
        policy: what acts; the actors have copies.
        episodes: what follows the streams; each batch must be committed before the next is asked for.
        actors: how many; at most one for each stream.
        address: of a cluster; None: a new one on this machine, which ends with this collector.
        updates: tells how many the learner has done by now.
    """

    def __init__(
        self,
        envs: StreamEnvs,
        policy: Policy,
        episodes: Episodes,
        actors: int,
        address: str | None,
        updates: Callable[[], int],
    ):
        self.envs, self.episodes, self.updates = envs, episodes, updates
        self.policy = Policy(*deepcopy((policy.encoder, policy.rssm, policy.actor)), noise=policy.noise).cpu()
        self.head = connect(address)
        count = len(envs.makers)
        self.shares = [range(count)[number::actors] for number in range(min(actors, count))]
        self.actors: list[Any] = [None] * len(self.shares)
        self.acting: list[int | None] = [None] * len(self.shares)  # updates that an actor's weights have seen
        self.lags: list[int] = []  # of batches since `mean_lag` was asked for
        self.failures: deque[int] = deque()  # when the last ones were, in steps
        self.steps, self.checked = 0, time.monotonic()
        self.update_policy_weights_(policy)
        self.calls: dict[Any, int] = {}  # under way: an actor's number for each
        for number in range(len(self.shares)):
            self.start(number)

    def __iter__(self) -> Iterator[TensorDictBase]:
        while True:
            ready, _ = ray.wait([*self.calls], num_returns=1, timeout=CHECK)
            if not ready or time.monotonic() > self.checked + CHECK:
                self.check_head()
            for call in ready:
                number = self.calls.pop(call)
                try:
                    batch, notes = ray.get(call)
                except RayTaskError as error:
                    causes = (error.cause, getattr(error.cause, "__cause__", None))
                    known = next((cause for cause in causes if isinstance(cause, TooManyFailures)), None)
                    raise known or error from None
                except RayError as error:
                    self.check_head()
                    self.replace(number, error)
                    continue
                for note in notes:
                    self.envs.report(note)
                self.steps += batch.numel()
                self.lags.append(self.updates() - self.acting[number])
                self.call(number)
                yield self.episodes(batch)

    def update_policy_weights_(self, policy: Policy) -> None:
        """Give the actors these weights, each with its next call."""
        parts = {name: getattr(policy, name).state_dict() for name in ("encoder", "rssm", "actor")}
        weights = {name: {key: value.cpu() for key, value in values.items()} for name, values in parts.items()}
        self.weights, self.newest = ray.put(weights), self.updates()

    def mean_lag(self) -> float:
        """Updates between the weights that acted and the arrival of their steps, since this was asked last."""
        lags, self.lags = self.lags, []
        return sum(lags) / max(1, len(lags))

    def shutdown(self, raise_on_error: bool = True) -> None:
        """End the actors, and the cluster if it was made here."""
        ray.shutdown()

    def start(self, number: int) -> None:
        """Make an actor whose streams begin at the states of the episodes."""
        self.envs.restore(self.episodes.states)
        share = self.envs.part(self.shares[number])
        share.report = None  # the actor keeps its notes
        self.actors[number] = ray.remote(StreamActor).options(scheduling_strategy="SPREAD").remote(share, self.policy)
        self.acting[number] = None
        self.call(number)

    def call(self, number: int) -> None:
        newer = self.acting[number] != self.newest
        self.acting[number] = self.newest
        self.calls[self.actors[number].collect.remote(self.weights if newer else None)] = number

    def replace(self, number: int, error: RayError) -> None:
        self.failures.append(self.steps)
        while self.failures[0] < self.steps - WINDOW:
            self.failures.popleft()
        told = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        if len(self.failures) > MOST_FAILURES:
            told = f"Ray actors failed {len(self.failures)} times within {WINDOW} steps. The last time: {told}"
            raise TooManyFailures(told)
        streams = ", ".join(map(str, self.shares[number]))
        self.envs.report(f"Ray actor {number} failed and is replaced; environments {streams} go on there: {told}")
        with suppress(RayError):
            ray.kill(self.actors[number])  # it may only have been out of reach
        self.start(number)

    def check_head(self) -> None:
        """Ray itself would wait for a dead head for a minute, and then end this process."""
        self.checked = time.monotonic()
        try:
            socket.create_connection(self.head, timeout=10).close()
            alive = any(node["Alive"] for node in ray.nodes())
        except (OSError, RayError):
            alive = False
        if not alive:
            told = f"The Ray cluster at {':'.join(map(str, self.head))} does not answer: its head died."
            raise ClusterLost(f"{told} Start it again (`ray start --head`) where collector.address names one.")


def connect(address: str | None) -> tuple[str, int]:
    """Connect to a cluster, or make one; returns host and port of its head."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    handler = signal.getsignal(signal.SIGTERM)  # Ray puts its own in place
    how: dict[str, Any] = {"address": address or "local", "log_to_driver": False, "logging_level": "error"}
    if address is None:
        how |= {"include_dashboard": False, "object_store_memory": 200 * 2**20}
    try:
        ray.init(**how)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterLost(f"There is no Ray cluster at {how['address']}: {str(error).splitlines()[0]}") from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    return host, int(port)
