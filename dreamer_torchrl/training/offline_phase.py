"""Learning from recorded data alone, before or without any step in an environment."""

from __future__ import annotations

from typing import Protocol

import torch

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.data.fitting import fitted, specs_of
from dreamer_torchrl.data.recorded import read
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.data.samplers import OnlineSampler
from dreamer_torchrl.keys import STREAM
from dreamer_torchrl.limits import ConfigError
from dreamer_torchrl.training.progress import Progress
from dreamer_torchrl.training.signals import StopSignals

AT_ONCE = 4096  # steps written together: their latents are as much memory more


class OfflinePhase:
    """The recorded steps of a run, from the source that it names, or as they are in its checkpoint when it goes on.

    Latents of recorded steps start at zero: those of another agent mean nothing to this one, and before its first
    updates neither do its own. So a sequence starts as at the beginning of an episode until an update has passed over
    the step before it; from then on it starts from that step's latents, as in a run online.

    Args:
        envs: the environment, to whose specs the steps must fit; without one the specs are those of the data.
    """

    def __init__(self, settings: Settings, envs: StreamEnvs | None, checkpoints: Checkpoints):
        self.settings, source = settings, settings.offline
        self.specs = None if envs is None else specs_of_envs(envs)
        if saved := checkpoints.load():
            self.steps = None
            self.count = saved.replay_state["written"] - saved.parts["progress"]["steps"]
            self.specs = self.specs or Specs.from_tree(saved.parts["specs"])
            return
        recorded = read(source)
        self.specs = self.specs or specs_of(recorded)
        steps, streams = fitted(recorded, self.specs, source), settings.env.num_envs
        episodes, whole = int(steps["is_init"].sum()), len(steps)
        most, needed = settings.replay.capacity // streams, settings.replay.length + settings.learner.context
        length = min(whole // streams, most)  # of each stream
        if length < needed:
            told = f"{whole:,} steps for {streams} environment{'s' * (streams > 1)}, and a sequence has {needed}"
            raise ConfigError(f"offline={source} has {told}: record more, or give a smaller replay.length.")
        # Streams of equal length, one piece of the data each: where an episode is cut, its first part is done.
        self.steps = steps[-length * streams :].reshape(streams, length).clone()  # [N, T]
        self.steps["done"][:, -1] = True
        self.count = length * streams
        used = "" if self.count > whole - streams else f", of which the replay takes the last {self.count:,}"
        self.note = f"Recorded data: {whole:,} steps of {episodes:,} episodes{used}; from {source}."

    def fill(self, replay: Replay, agent: Agent) -> None:
        """Write the steps, and let all sequences of them be drawn alike, none of them first."""
        latent = agent.rssm.latent
        zeros = {"belief": torch.zeros(agent.rssm.belief_size)}
        zeros["state"] = torch.zeros(latent.packed_shape, dtype=latent.packed_dtype)
        for some in self.steps.split(max(1, AT_ONCE // len(self.steps)), 1):
            some = some.copy()
            some[STREAM] = torch.arange(len(some)).reshape(-1, 1, 1).expand(*some.shape, 1)
            for key, zero in zeros.items():
                some[key] = zero.expand(*some.shape, *zero.shape)
            replay.extend(some)
        self.steps = None
        if isinstance(replay.sampler, OnlineSampler):
            replay.sampler.fresh.clear()


def specs_of_envs(envs: StreamEnvs) -> Specs:
    return Specs(envs.observation_spec_unbatched, envs.full_action_spec_unbatched, envs.bounds)


class Loop(Protocol):
    """What the phase needs of a `Training`."""

    settings: Settings
    progress: Progress

    @property
    def diverged(self) -> bool: ...
    def evaluate_when_due(self, stop: StopSignals) -> None: ...
    def update(self, stop: StopSignals) -> int: ...
    def due(self) -> tuple[bool, bool]: ...
    def log_and_save(self, log: bool, save: bool) -> None: ...


def learn_offline(training: Loop, stop: StopSignals) -> None:
    """Do the updates of the offline phase that are left, with evaluations, records and checkpoints in between."""
    settings, progress = training.settings, training.progress
    while True:
        training.evaluate_when_due(stop)
        over = progress.offline >= settings.updates_before or progress.finished(settings)
        if over or stop.requested or training.diverged:
            return
        progress.credit = max(progress.credit, 1.0)
        progress.offline += training.update(stop)
        training.log_and_save(*training.due())
