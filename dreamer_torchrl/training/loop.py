"""The training loop: act, remember, learn, and tell and save on the way."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tensordict import TensorDictBase

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, NoSoundCheckpoint, Saved
from dreamer_torchrl.collectors.collect import Collector
from dreamer_torchrl.collectors.stream_envs import TooManyFailures
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.learners.learner import Learner, set_generator_state
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.record.metrics import Metrics, memory_bytes
from dreamer_torchrl.training.build import (
    choose_device,
    make_agent,
    make_policy,
    make_replay,
    make_streams,
    seed_for,
)
from dreamer_torchrl.training.evaluation import GivenUp
from dreamer_torchrl.training.evaluations import Evaluations
from dreamer_torchrl.training.memory import replay_size
from dreamer_torchrl.training.signals import StopSignals
from dreamer_torchrl.training.stopwatch import Stopwatch
from dreamer_torchrl.views.report_page import Reports

RECENT = 10
"""Episodes whose mean return is shown."""

MOST_SKIPPED = 5
"""More updates in a row that are not finite are no accident."""

NOTHING_WRITTEN = Metrics([]).state_dict()


class Diverged(RuntimeError):
    """Update after update is not finite; the message names what and where the batch is."""


@dataclass
class Progress:
    """How far a run is: everything that it counts."""

    steps: int = 0
    updates: int = 0
    skipped: int = 0  # updates that were not finite
    episodes: int = 0
    credit: float = 0.0  # updates that collected steps have earned and that are not done yet
    evaluated: int = 0  # step of the last evaluation
    evaluation: float | None = None  # its mean return
    best_evaluation: float | None = None  # the highest of all evaluations
    best: float | None = None  # mean return over RECENT episodes
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)


class Training:
    """One run in one process.

    Args:
        settings: of the run.
        run_dir: its folder.
        console: where everything that is said goes.
    """

    def __init__(self, settings: Settings, run_dir: Path, console: Console):
        self.settings, self.run_dir, self.console = settings, run_dir, console
        seed, env = settings.seed, settings.env
        self.device = choose_device(settings.device)
        self.checkpoints = Checkpoints(run_dir / "checkpoints", settings.checkpoint.keep)
        self.streams = make_streams(settings, "training", env.num_envs, processes=env.workers != "serial")
        console.note(replay_size(settings, self.streams, run_dir, continued=bool(self.checkpoints.names())))
        self.replay = make_replay(settings, run_dir)
        agent = make_agent(settings, self.streams).to(self.device)
        self.learner = Learner(agent, settings.learner, seed_for(seed, "learner"), settings.compile, settings.native)
        self.policy = make_policy(agent, seed_for(seed, "policy"))
        self.collector = Collector(self.streams, self.policy)
        self.evaluations = Evaluations(settings, run_dir, agent, console.note) if settings.eval.every else None
        self.enough = max(settings.prefill, settings.replay.batch * settings.replay.length)  # steps to learn from
        if settings.total_steps < self.enough:
            console.note(
                f"Nothing will be learned: updates begin at step {self.enough:,} (prefill, or replay.batch times "
                f"replay.length), and total_steps is {settings.total_steps:,}."
            )
        self.progress = Progress()
        self.metrics = Metrics([])
        self.reports = Reports(run_dir, console.note)
        self.stopwatch = Stopwatch("environment", "acting", "replay", "learner")
        self.skipped_in_a_row = 0
        self.fault: tuple[str, TensorDictBase] | None = None  # of the last skipped update, with its batch
        self.went_back = False

    # The loop ---------------------------------------------------------------------------------------------------

    def run(self, metrics: Metrics, saved: Saved | None, stop: StopSignals) -> None:
        """Train until ``total_steps``, ``eval.stop_at`` or a signal; the last state is saved."""
        self.metrics, settings, progress = metrics, self.settings, self.progress
        if saved is None:
            metrics.load_state_dict(NOTHING_WRITTEN)  # a process killed before its first checkpoint may have written
            self.collector.start()
        else:
            self.restore(saved)
        self._start_clock()
        before, overlap = replace(progress), settings.env.workers == "async"
        while not stop.requested:
            if self.skipped_in_a_row >= MOST_SKIPPED:
                self.go_back()
            finished = progress.steps >= settings.total_steps
            if finished or not overlap:
                self.learn(stop)
            if stop.requested or self.skipped_in_a_row >= MOST_SKIPPED:
                continue
            if self._evaluation_is_due:
                self.evaluate(stop)
            if finished or stop.requested or self.solved:
                break
            with self.stopwatch("acting"):
                self.collector.send()
            if overlap:  # the environments are busy meanwhile
                self.learn(stop)
            try:
                with self.stopwatch("environment"):
                    steps = self.collector.receive()
            except TooManyFailures:  # all up to these actions is kept
                self.collector.take_back()
                with stop.saving():
                    self.finish(before)
                raise
            self.remember(steps)
            self._when_due()
        with stop.saving():
            self.finish(before)

    def finish(self, before: Progress) -> None:
        """Save the last state; a run that is stopped at once, or was finished before, is left as it is."""
        if self.progress != before:
            self.log()
            self.save(wait=True)
            self.reports.refresh(at_end=True)

    def remember(self, steps: TensorDictBase) -> None:
        """Store complete steps ``[N]``; each earns its share of an update once there is enough to learn from."""
        settings, progress = self.settings, self.progress
        with self.stopwatch("replay"):
            self.replay.extend(steps.unsqueeze(0))
        progress.steps += len(self.streams)
        if progress.steps >= self.enough and self.replay.ready:
            progress.credit += len(self.streams) * settings.updates_per_step
        for environment, total_reward, length in self.collector.finished:
            progress.episodes += 1
            progress.recent = [*progress.recent, total_reward][-RECENT:]
            if len(progress.recent) == RECENT:
                progress.best = max(fmean(progress.recent), progress.best if progress.best is not None else -torch.inf)
            episode = {"episode/return": total_reward, "episode/length": length, "episode/environment": environment}
            self.metrics.write(progress.steps, episode | {"count/frames": self._frames})

    def learn(self, stop: StopSignals) -> None:
        """Do the updates that were earned; what a signal leaves undone stays earned."""
        progress = self.progress
        while progress.credit >= 1 and self.skipped_in_a_row < MOST_SKIPPED and not stop.requested:
            progress.credit -= 1
            progress.updates += 1
            with self.stopwatch("replay"):
                batch, where = self.replay.sample()
            with self.stopwatch("learner"):
                metrics, latents = self.learner.update(batch)
                finite = bool(metrics["finite"])
            if finite:
                with self.stopwatch("replay"):
                    self.replay.refresh(where, latents)
                self.metrics.add(metrics)
                self.skipped_in_a_row = 0
            else:
                progress.skipped += 1
                self.skipped_in_a_row += 1
                self.fault = self.learner.fault(metrics), batch
                self.console.note(f"Update {progress.updates} is skipped: {self.fault[0]} is not finite.")

    # What else a run does ---------------------------------------------------------------------------------------

    def evaluate(self, stop: StopSignals) -> None:
        """Play the evaluation's episodes with the present weights; after a signal it is left for the next process.

        One whose environments fail all the time is left out. The last one is due again when the run goes on.
        """
        progress = self.progress
        try:
            evaluation = self.evaluations.play(lambda: bool(stop.requested))
        except GivenUp:
            return
        if evaluation is None:
            if progress.steps < self.settings.total_steps:
                progress.evaluated = progress.steps
            return
        progress.evaluated, progress.evaluation = progress.steps, evaluation.mean
        self.metrics.write(progress.steps, evaluation.values() | {"count/frames": self._frames})
        if progress.best_evaluation is None or evaluation.mean > progress.best_evaluation:
            progress.best_evaluation = evaluation.mean
            self.metrics.best(progress.steps, evaluation.mean, self.learner.agent)
        last = progress.steps >= self.settings.total_steps or self.solved
        for name, video in self.evaluations.videos(evaluation, progress.steps, last):
            self.metrics.video(progress.steps, name, video)
        self.reports.refresh()

    def log(self) -> None:
        """Write one record of everything that is measured at intervals."""
        progress, before, now = self.progress, self.since, time.monotonic()
        seconds = max(now - before["time"], 1e-9)
        rate = (progress.steps - before["steps"]) / seconds
        left = self.settings.total_steps - progress.steps
        pace = progress.steps / max(self.elapsed, 1e-9)
        values = {f"train/{key}": value for key, value in self.metrics.means().items()}
        values |= {
            "rate/steps_per_second": rate,
            "rate/updates_per_second": (progress.updates - before["updates"]) / seconds,
            "rate/frames_per_second": rate * self.settings.env.frames_per_step,
            "time/elapsed": self.elapsed,
            "count/updates": progress.updates,
            "count/updates_skipped": progress.skipped,
            "count/episodes": progress.episodes,
            "count/frames": self._frames,
            "count/environment_failures": self.streams.failures,
        }
        values |= {f"share/{part}": share for part, share in self.stopwatch.shares().items()}
        if pace > 0:
            values["time/left"] = max(left, 0) / pace
        if progress.best is not None:
            values["best/return"] = progress.best
        self.metrics.write(progress.steps, values | memory_bytes())
        self.since = {"time": now, "steps": progress.steps, "updates": progress.updates}

    def save(self, wait: bool = False) -> None:
        """Save this instant; on a full disk training goes on."""
        self.progress.seconds = self.elapsed
        self.started = time.monotonic()
        self.checkpoints.save(self.progress.steps, self.state(), self.replay, wait)
        if wait:
            self.checkpoints.wait()
        if self.checkpoints.failure:
            self.console.note(str(self.checkpoints.failure))

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on, but the replay."""
        return {
            "learner": self.learner.state_dict(),
            "collector": self.collector.state_dict(),
            "policy_generator": self.policy.generator.get_state(),
            "progress": asdict(self.progress),
            "metrics": self.metrics.state_dict(),
        }

    def restore(self, saved: Saved) -> None:
        """Go on where a checkpoint was taken."""
        self.learner.load_state_dict(saved.parts["learner"])
        saved.restore_replay(self.replay)
        set_generator_state(self.policy.generator, saved.parts["policy_generator"])
        self.progress.__dict__.update(saved.parts["progress"])
        self.metrics.load_state_dict(saved.parts["metrics"])
        elsewhere = self.collector.load_state_dict(saved.parts["collector"])
        self.console.note(f"Resumed at step {self.progress.steps:,} from {saved.path}.")
        for index in elsewhere:
            self.console.note(
                f"Environment {index} did not come back to where it was, although its seed and actions were the same: "
                "its episode ends here, and a new one starts."
            )

    def go_back(self) -> None:
        """Return to the last checkpoint after too many skipped updates, once; the next time is the end."""
        fault, batch = self.fault
        saved = None if self.went_back else self._sound_checkpoint()
        if saved is None:
            path = self.run_dir / "faults" / f"batch-{self.progress.updates:09d}.pt"
            path.parent.mkdir(exist_ok=True)
            torch.save(batch.to_dict(), path)
            raise Diverged(
                f"{MOST_SKIPPED} updates in a row were not finite ({fault}). The last batch is in {path}. A new run "
                "with a smaller learner.learning_rate may help; `python -m dreamer_torchrl.doctor --env ...` checks "
                "the environment."
            )
        self.console.note(f"{MOST_SKIPPED} updates in a row were not finite: back to {saved.path}, this once.")
        self.went_back, self.skipped_in_a_row = True, 0
        self.restore(saved)
        self._start_clock()
        # The same random numbers would lead to the same place.
        self.learner.generator.manual_seed(seed_for(self.settings.seed, "learner, after going back"))
        self.replay.sampler.generator.manual_seed(seed_for(self.settings.seed, "replay, after going back"))

    def close(self) -> None:
        """Let environments go."""
        self.streams.close()
        if self.evaluations is not None:
            self.evaluations.close()

    def _sound_checkpoint(self) -> Saved | None:
        try:
            return self.checkpoints.load()
        except NoSoundCheckpoint as error:
            self.console.note(str(error))
            return None

    @property
    def solved(self) -> bool:
        """Whether the last evaluation reached the return that was asked for."""
        wanted, reached = self.settings.eval.stop_at, self.progress.evaluation
        return wanted is not None and reached is not None and reached >= wanted

    @property
    def elapsed(self) -> float:
        """Seconds of training over all processes of this run."""
        return self.progress.seconds + time.monotonic() - self.started

    @property
    def _evaluation_is_due(self) -> bool:
        every, steps, evaluated = self.settings.eval.every, self.progress.steps, self.progress.evaluated
        at_end = steps >= self.settings.total_steps
        return every > 0 and evaluated < steps and (at_end or steps // every > evaluated // every)

    @property
    def _frames(self) -> int:
        return self.progress.steps * self.settings.env.frames_per_step

    def _start_clock(self) -> None:
        self.started = self.saved_at = time.monotonic()
        self.since = {"time": self.started, "steps": self.progress.steps, "updates": self.progress.updates}

    def _when_due(self) -> None:
        settings, now = self.settings, time.monotonic()
        for note in self.streams.notes:
            self.console.note(note)
        self.streams.notes.clear()
        if now - self.since["time"] >= settings.log.every:
            self.log()
        if now - self.saved_at >= settings.checkpoint.every:
            self.saved_at = now
            self.save()
