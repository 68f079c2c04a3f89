"""N streams side by side, in this process or in one each; what breaks is replaced and its stream goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

import torch
from tensordict import TensorDictBase
from torchrl.data import Composite

from dreamer_torchrl.collectors.workers import Elsewhere, EnvironmentFailed, Here, Host, Maker


class TooManyFailures(RuntimeError):
    """Environments break all the time; the message holds the last reason."""


class StreamState(NamedTuple):
    """What it takes to bring a stream back: the number of its episode and what was done in it so far."""

    episode: int
    actions: TensorDictBase  # [t]


class Actions:
    """What N streams did lately, joined in blocks: a single one takes kilobytes, and episodes can be long.

    Args:
        none: no actions ``[0, N]``.
    """

    block = 256

    def __init__(self, none: TensorDictBase):
        self.none = none
        self.first = 0  # place of the oldest that is kept, counted from the start
        self._blocks: deque[TensorDictBase] = deque()  # [block, N] each
        self._newest: list[TensorDictBase] = []  # [N] each

    def __len__(self) -> int:
        return self.block * len(self._blocks) + len(self._newest)

    def append(self, action: TensorDictBase) -> None:
        """Add an action ``[N]``."""
        self._newest.append(action)
        if len(self._newest) == self.block:
            self._blocks.append(torch.stack(self._newest))
            self._newest = []

    def take_back(self) -> None:
        """Drop the newest."""
        if not self._newest:
            self._newest = list(self._blocks.pop().unbind(0))
        self._newest.pop()

    def forget(self, before: int) -> None:
        """Drop whole blocks that are not needed to know what was done from the place ``before`` on."""
        while self._blocks and self.first + self.block <= before:
            self._blocks.popleft()
            self.first += self.block

    def joined(self) -> TensorDictBase:
        """All that are kept, ``[t, N]``."""
        newest = [torch.stack(self._newest)] if self._newest else []
        return torch.cat([self.none, *self._blocks, *newest])


class Streams:
    """Step N streams together.

    An environment that raises, hangs, dies or shows something that is not finite is built anew, and its stream goes on
    with its next episode. More than ``most_failures`` of that within ``window`` steps raise `TooManyFailures`.

    Args:
        makers: one function per stream, which gives its `StreamEnv`; it must survive pickling if it goes to a process.
        processes: one process per stream instead of all in this one.
        timeout: seconds that a process has for a step.
        most_failures: more within ``window`` steps are too many.
        window: in steps of all streams together.

    Example:
        >>> from tensordict import TensorDict
        >>> from torchrl.envs import GymEnv
        >>> from dreamer_torchrl.collectors.stream_env import StreamEnv
        >>> streams = Streams([lambda: StreamEnv(GymEnv("CartPole-v1"), entropy=[0])] * 2)
        >>> steps = streams.start()
        >>> streams.send(TensorDict({"action": streams.action_spec["action"].rand((2,))}, [2]))
        >>> steps, failed = streams.receive()
        >>> steps.shape, failed.tolist()
        (torch.Size([2]), [False, False])
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        processes: bool = False,
        timeout: float = 60.0,
        most_failures: int = 10,
        window: int = 1000,
    ):
        self.makers, self.processes, self.timeout = list(makers), processes, timeout
        self.most_failures, self.window = most_failures, window
        self.failures = 0
        self.notes: list[str] = []  # what happened and should be told; the reader empties it
        self._recent: deque[int] = deque()  # when the last failures were, in calls of `receive`
        self._clock = 0
        example = self.makers[0]()
        self.observation_spec: Composite = example.env.observation_spec.clone()
        self.action_spec: Composite = example.full_action_spec.clone()
        self.bounds = example.bounds
        example.close()
        self.hosts: list[Host | None] = []
        self._acted = Actions(self.action_spec.zero((0, len(self))))  # since the oldest present episode began
        self._began: list[int] = []  # when the present episodes began
        self._episodes: list[int] = []  # their numbers
        self._before: list[TensorDictBase] = []  # [t] each, what was done in them before the run was resumed
        self._stood = self._episodes, self._began, self._before  # these three before the last actions

    def __len__(self) -> int:
        return len(self.makers)

    @property
    def states(self) -> list[StreamState]:
        """What it takes to bring each stream back to where it is."""
        acted, first = self._acted.joined(), self._acted.first  # [t, N]
        return [
            StreamState(episode, torch.cat([before, acted[began - first :, index]]))
            for index, (episode, began, before) in enumerate(
                zip(self._episodes, self._began, self._before, strict=True)
            )
        ]

    def start(self, states: Sequence[StreamState] | None = None) -> TensorDictBase:
        """The present steps ``[N]``: first ones, or those to which the recorded actions of ``states`` lead."""
        self._clock, self._began = 0, [0] * len(self)
        self._acted = Actions(self._acted.none)
        self._recent.clear()
        states = states or [StreamState(0, self._nothing_done)] * len(self)
        self._episodes, self._before = [state.episode for state in states], [state.actions for state in states]
        self.hosts = self.hosts or [None] * len(self)
        if self.processes:  # they start side by side
            self.hosts = [host or self._host(index) for index, host in enumerate(self.hosts)]
        return torch.stack([self._first(index) for index in range(len(self))])

    def send(self, action: TensorDictBase) -> None:
        """Hand actions ``[N, ...]`` to the environments."""
        self._stood = [*self._episodes], [*self._began], [*self._before]
        self._acted.append(action)
        for host, own in zip(self.hosts, action.unbind(0), strict=True):
            host.send(own)

    def receive(self) -> tuple[TensorDictBase, torch.Tensor]:
        """The steps ``[N]`` that followed, and which of them could not follow since the environment failed.

        Where one failed, the step is the first of a new episode.
        """
        self._clock += 1
        steps, failed = [], torch.zeros(len(self), dtype=torch.bool)  # [N]
        for index, host in enumerate(self.hosts):
            try:
                step = host.receive()
            except EnvironmentFailed as failure:
                self._replace(index, failure)
                failed[index] = True
                step = self._first(index)
            else:
                if step["is_init"]:
                    self._next_episode(index)
            steps.append(step)
        self._acted.forget(min(self._began))
        return torch.stack(steps), failed

    def take_back(self) -> None:
        """After `TooManyFailures`: let `states` be those before the last `send`. Only `close` or `start` may follow."""
        self._acted.take_back()
        self._episodes, self._began, self._before = self._stood

    def end_episodes(self, which: Iterable[int]) -> None:
        """Let the next action of these streams start a new episode, whatever they were doing."""
        for index in which:
            self.hosts[index].end_episode()

    def close(self) -> None:
        """Close all environments."""
        for index in range(len(self.hosts)):
            self._close(index)

    def _close(self, index: int) -> None:
        host, self.hosts[index] = self.hosts[index], None
        if host is not None:
            with suppress(EnvironmentFailed):  # a broken one may not even close
                host.close()

    def _next_episode(self, index: int) -> None:
        self._episodes[index] += 1
        self._began[index] = self._clock
        self._before[index] = self._nothing_done

    @property
    def _nothing_done(self) -> TensorDictBase:
        return self._acted.none[:, 0]  # [0]

    def _host(self, index: int) -> Host:
        make = self.makers[index]
        return Elsewhere(make, self.timeout) if self.processes else Here(make)

    def _first(self, index: int) -> TensorDictBase:
        """Bring a stream to its recorded state, with as many replacements as that takes."""
        while True:
            try:
                if self.hosts[index] is None:
                    self.hosts[index] = self._host(index)
                return self.hosts[index].resume(self._episodes[index], self._before[index])
            except EnvironmentFailed as failure:
                self._replace(index, failure)

    def _replace(self, index: int, failure: EnvironmentFailed) -> None:
        """Put a new environment in the place of a broken one, at the next episode of its stream."""
        self.failures += 1
        self._recent.append(self._clock)
        while self._recent[0] <= self._clock - self.window / len(self):
            self._recent.popleft()
        self.notes.append(f"Environment {index} failed and is replaced; its episode ends here: {failure}")
        if len(self._recent) > self.most_failures:
            raise TooManyFailures(
                f"Environments failed {len(self._recent)} times within {self.window} steps. The last time: {failure}"
            )
        self._close(index)
        self._next_episode(index)
