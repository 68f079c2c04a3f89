"""A policy acting in streams: from what is seen to records of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from dreamer_torchrl.agents.policy import Policy
from dreamer_torchrl.collectors.stream_envs import Streams, StreamState
from dreamer_torchrl.keys import LATENTS


class Episode(NamedTuple):
    """A finished episode: in which environment, the sum of its rewards, its number of actions."""

    environment: int
    total_reward: float
    length: int


class Collector:
    """Let a policy act in N streams and give each step once it is complete.

    A step is complete when the next one has arrived: only then is it known whether the environment survived. One that
    failed closes its episode here (``done`` without ``terminated``), which does not count as finished.

    Args:
        streams: where to act.
        policy: what acts; its generator is the source of all chance here.
        deterministic: most likely latents and actions instead of drawn ones.
    """

    def __init__(self, streams: Streams, policy: Policy, deterministic: bool = False):
        self.streams, self.policy = streams, policy
        self.exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        self.device = next(policy.parameters()).device
        self.now: TensorDictBase = TensorDict()  # [N], what was seen last and is done now
        self.latents: TensorDictBase = TensorDict()  # [N], what the policy carries
        self._stood = self.now, self.latents  # both before the last `send`
        self.total_reward = torch.zeros(len(streams), dtype=torch.float64)  # [N], of the present episodes
        self.length = torch.zeros(len(streams), dtype=torch.int64)  # [N]
        self.finished: list[Episode] = []  # those that the last `receive` completed

    def start(self) -> None:
        """Begin all streams."""
        self.now = self.streams.start()

    def send(self) -> None:
        """Choose actions for what is seen now, and hand them to the environments."""
        self._stood = self.now, self.latents
        seen = self.now.copy().update(self.latents).to(self.device)
        with set_exploration_type(self.exploration):
            acted = self.policy(seen).cpu()
        self.latents = acted.select(*LATENTS)
        self.now = acted
        self.streams.send(acted.select(*self.streams.action_spec.keys(True, True)))

    def receive(self) -> TensorDictBase:
        """Wait for what follows; the steps ``[N]`` that are complete by that."""
        arrived, failed = self.streams.receive()
        steps, self.now = self.now.exclude("previous_action"), arrived
        broken = failed & ~steps["done"].squeeze(1)  # [N], those that failed after their end were finished
        steps["done"] = steps["done"] | failed.unsqueeze(1)
        self._count(steps, broken)
        return steps

    def take_back(self) -> None:
        """After a `receive` that raised `TooManyFailures`: stand where the last `send` began, to be saved there."""
        self.now, self.latents = self._stood
        self.streams.take_back()

    def state_dict(self) -> dict[str, Any]:
        """Where the streams stand, between `receive` and `send`."""
        states = self.streams.states
        return {
            "now": _plain(self.now),
            "latents": _plain(self.latents),
            "total_reward": self.total_reward.clone(),
            "length": self.length.clone(),
            "failures": self.streams.failures,
            "episodes": [state.episode for state in states],
            "actions": [_plain(state.actions) for state in states],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> list[int]:
        """Start all streams where `state_dict` was taken, each by repeating its unfinished episode.

        Returns the environments in which that led elsewhere: their episode ends with the step that was recorded.
        """
        self.total_reward, self.length = state["total_reward"].clone(), state["length"].clone()
        self.streams.failures = state["failures"]
        self.latents, recorded = _tensordict(state["latents"]), _tensordict(state["now"])
        pairs = zip(state["episodes"], map(_tensordict, state["actions"]), strict=True)
        arrived = self.streams.start([StreamState(episode, actions) for episode, actions in pairs])
        same = [_equal(now, then) for now, then in zip(arrived.unbind(0), recorded.unbind(0), strict=True)]
        elsewhere = [index for index, is_same in enumerate(same) if not is_same]
        self.now = recorded
        self.end_episodes(elsewhere)
        return elsewhere

    def end_episodes(self, which: Sequence[int]) -> None:
        """Let what these environments show now be the last step of their episodes."""
        self.now["done"][which] = True
        self.streams.end_episodes(which)

    def _count(self, steps: TensorDictBase, broken: torch.Tensor) -> None:
        first = steps["is_init"].squeeze(1)
        self.total_reward = torch.where(first, 0, self.total_reward) + steps["reward"].squeeze(1)
        self.length = torch.where(first, 0, self.length + 1)
        self.finished = [
            Episode(index, float(self.total_reward[index]), int(self.length[index]))
            for index in (steps["done"].squeeze(1) & ~broken).nonzero().squeeze(1).tolist()
        ]


def _plain(tensordict: TensorDictBase) -> dict[str, Any]:
    return tensordict.clone().to_dict(retain_none=False)


def _tensordict(values: Mapping[str, Any]) -> TensorDictBase:
    return TensorDict(dict(values)).auto_batch_size_(1)


def _equal(one: TensorDictBase, other: TensorDictBase) -> bool:
    return all(torch.equal(value, other[key]) for key, value in one.items(True, True))
