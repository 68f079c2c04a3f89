"""N endless streams as one batched environment; a broken one is rebuilt, and its stream continues."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from dreamer_torchrl.collectors.stream_env import StreamEnv, endless
from dreamer_torchrl.collectors.workers import EnvironmentFailed, LocalWorker, Maker, ProcessWorker, Worker
from dreamer_torchrl.keys import ENDLESS, LATENTS


class TooManyFailures(RuntimeError):
    """Environments fail repeatedly; the message has the last error."""


class ClusterLost(RuntimeError):
    """The head of the cluster where environments run does not answer."""


class StreamState(NamedTuple):
    episode: int  # number of the present one
    actions: TensorDictBase | None  # all that were taken in it [t]; None if they were too many to be kept
    step: TensorDictBase | None  # the present one, with the latents of the one before; None for a first step


class StreamEnvs(EnvBase):
    """N `StreamEnv` side by side, batch size ``[N]``, for ``rollout`` and any TorchRL collector.

    An environment that raises, hangs, dies or shows something that is not finite is built anew, and its stream goes on
    with its next episode: ``is_init`` follows a step that was not ``done``. More than ``most_failures`` within
    ``window`` steps raise `TooManyFailures`. A reset starts the next episode of each stream, or of those whose
    ``("endless", "_reset")`` is set; after `restore` it leads to where a state was taken.

    Args:
        makers: one function per stream, which makes its `StreamEnv`; it is pickled if it goes to a process.
        workers: ``serial`` (all in this process) or ``processes`` (one for each).
        timeout: seconds that a process has for a step.
        report: called with a message about each failure; kept in ``notes`` if left out.
        streams: what stands under ``stream``; 0 to N - 1 if left out.
        batched: False for a single stream without batch dimension.

    Example:
        >>> from torchrl.envs import GymEnv
        >>> from dreamer_torchrl.collectors.stream_env import StreamEnv
        >>> envs = StreamEnvs([lambda: StreamEnv(GymEnv("CartPole-v1"), entropy=[0])] * 2)
        >>> envs.rollout(5)["next", "reward"].shape
        torch.Size([2, 5, 1])
    """

    def __init__(
        self,
        makers: Sequence[Maker],
        workers: Literal["serial", "processes"] = "serial",
        timeout: float = 60.0,
        report: Callable[[str], None] | None = None,
        streams: Sequence[int] | None = None,
        batched: bool = True,
        most_failures: int = 10,
        window: int = 1000,
    ):
        example, count = makers[0](), len(makers)
        super().__init__(device=example.device, batch_size=[count] if batched else [])
        self.makers, self.kind, self.timeout = list(makers), workers, timeout
        self.most_failures, self.window = most_failures, window
        self.notes: list[str] = []
        self.report = report or self.notes.append
        self.streams = list(range(count)) if streams is None else list(streams)
        self.bounds = example.bounds
        self.observation_spec = example.observation_spec.expand(self.batch_size)
        self.action_spec = example.full_action_spec.expand(self.batch_size)
        self.reward_spec = example.full_reward_spec.expand(self.batch_size)
        self.done_spec = example.full_done_spec.expand(self.batch_size)
        example.close()
        self.workers: list[Worker | None] = [None] * count
        self._stream = torch.tensor(self.streams).reshape(*self.batch_size, 1)
        self._episodes = [0] * count  # numbers of the present ones
        self._recent: deque[int] = deque()  # when the last failures were, in steps
        self._clock = 0
        self._seed: int | None = None
        self._now: list[TensorDictBase] = []  # the present steps
        self.latents: TensorDictBase | None = None  # what a reset adds for the policy where no state brings it, [...]
        self.restore()

    def part(self, which: Sequence[int], batched: bool = True) -> StreamEnvs:
        """Some of these streams as an environment of their own; failures are counted for each by itself."""
        makers, streams, pending = ([some[i] for i in which] for some in (self.makers, self.streams, self._pending))
        part = StreamEnvs(makers, self.kind, self.timeout, self.report, streams, batched)
        part.restore(pending)
        part.latents = self.latents
        return part

    def restore(self, states: Sequence[StreamState] | None = None) -> None:
        """Let the next reset lead to these states, or to the start of episode 0 in each stream."""
        self._pending = list(states) if states is not None else [StreamState(0, None, None)] * len(self.makers)
        self._recent.clear()

    def end_episodes(self, which: Iterable[int]) -> None:
        """Let the next action of these streams start a new episode, whatever they were doing."""
        for index in which:
            self.workers[index].end_episode(self._episodes[index] + 1)

    def close(self, *, raise_if_closed: bool = True) -> None:
        super().close(raise_if_closed=False)
        for worker in filter(None, self.workers):
            worker.release()
        for index in range(len(self.workers)):
            self._close(index)
        self.is_closed = False

    def _reset(self, tensordict: TensorDictBase | None = None) -> TensorDictBase:
        chosen = None if tensordict is None else tensordict.get((ENDLESS, "_reset"), None)
        which = range(len(self.makers)) if chosen is None else chosen.reshape(-1).nonzero().flatten().tolist()
        self._now = self._now or [None] * len(self.makers)
        if self.kind == "processes":  # they start side by side
            self.workers = [worker or self._worker(index) for index, worker in enumerate(self.workers)]
        states = self._pending or [StreamState(episode + 1, None, None) for episode in self._episodes]
        for index in which:
            self._now[index] = self._restored(index, states[index])
        self._pending = []
        steps = self._join(self._now)
        if self.latents is not None and chosen is None:
            recorded = [{} if state.step is None else state.step.select(*LATENTS, strict=False) for state in states]
            steps.update(self._join([self.latents.clone().update(latents) for latents in recorded]))
        return self._endless(steps).exclude((ENDLESS, "reward"))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict.select(*self.action_keys)
        for worker, own in zip(self.workers, action.unbind(0) if self.batch_size else [action], strict=True):
            worker.send(own)
        self._clock += 1
        self._now = [self._received(index) for index in range(len(self.workers))]
        return self._endless(self._join(self._now))

    _reset_proc_data = StreamEnv._reset_proc_data

    def _set_seed(self, seed: int | None) -> None:
        self._seed = seed
        for index, worker in enumerate(self.workers):
            if worker is not None and seed is not None:
                worker.seed((seed, self.streams[index]))
        self.restore()

    def _join(self, steps: list[TensorDictBase]) -> TensorDictBase:
        return torch.stack(steps) if self.batch_size else steps[0].copy()

    def _endless(self, steps: TensorDictBase) -> TensorDictBase:
        return endless(steps, self._stream.clone(), torch.tensor(self._episodes).reshape(*self.batch_size, 1))

    def _received(self, index: int) -> TensorDictBase:
        try:
            step = self.workers[index].receive()
        except EnvironmentFailed as failure:
            self._replace(index, failure)
            return self._started(index, None)
        if step["is_init"]:
            self._episodes[index] += 1
        return step

    def _restored(self, index: int, state: StreamState) -> TensorDictBase:
        """Repeat an episode up to its last recorded step; one that diverges ends with that step."""
        self._episodes[index] = state.episode
        if state.step is None:
            return self._started(index, None)
        recorded, actions = state.step.exclude(*LATENTS), state.actions
        if actions is None:
            note = "cannot be brought back, since it is too long for its actions to be kept"
            self.workers[index] = self.workers[index] or self._worker(index)
        else:
            arrived = self._started(index, actions)
            if all(torch.equal(value, recorded[key]) for key, value in arrived.items(True, True)):
                return arrived
            note = "did not come back to where it was, although its seed and actions were the same"
        self.report(f"Environment {self.streams[index]} {note}: its episode ends here, and a new one starts.")
        self.end_episodes([index])
        return recorded.set("done", torch.ones_like(recorded["done"]))

    def _started(self, index: int, actions: TensorDictBase | None) -> TensorDictBase:
        while True:
            try:
                self.workers[index] = self.workers[index] or self._worker(index)
                actions = self.full_action_spec_unbatched.zero((0,)) if actions is None else actions  # [0]
                return self.workers[index].resume(self._episodes[index], actions)
            except EnvironmentFailed as failure:
                self._replace(index, failure)
                actions = None

    def _replace(self, index: int, failure: EnvironmentFailed) -> None:
        self._recent.append(self._clock)
        while self._recent[0] <= self._clock - self.window / len(self.makers):
            self._recent.popleft()
        self.report(f"Environment {self.streams[index]} failed and is replaced; its episode ends here: {failure}")
        if len(self._recent) > self.most_failures:
            raise TooManyFailures(
                f"Environments failed {len(self._recent)} times within {self.window} steps. The last time: {failure}"
            )
        self._close(index)
        self._episodes[index] += 1

    def _worker(self, index: int) -> Worker:
        make = self.makers[index]
        worker = ProcessWorker(make, self.timeout) if self.kind == "processes" else LocalWorker(make)
        if self._seed is not None:
            worker.seed((self._seed, self.streams[index]))
        return worker

    def _close(self, index: int) -> None:
        worker, self.workers[index] = self.workers[index], None
        if worker is not None:
            with suppress(EnvironmentFailed):  # a broken one may not even close
                worker.close()
