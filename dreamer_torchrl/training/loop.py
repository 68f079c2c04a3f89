"""The training loop: collect, store, update, evaluate, log, save."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tensordict import TensorDictBase
from torchrl import timeit
from torchrl.collectors import BaseCollector

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, NoSoundCheckpoint, Saved
from dreamer_torchrl.collectors.episodes import Episodes
from dreamer_torchrl.collectors.make_collector import make_collector
from dreamer_torchrl.collectors.stream_envs import TooManyFailures
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.learners.learner import set_generator_state
from dreamer_torchrl.limits import ConfigError
from dreamer_torchrl.modules.actor import Actor
from dreamer_torchrl.objectives.common import Behaviour
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.record.metrics import Metrics, memory_bytes
from dreamer_torchrl.record.monitor import Monitor
from dreamer_torchrl.training import build
from dreamer_torchrl.training.evaluating import play_evaluation
from dreamer_torchrl.training.evaluation import Evaluator
from dreamer_torchrl.training.late import MOST_SKIPPED, Diverged, Update
from dreamer_torchrl.training.memory import replay_size
from dreamer_torchrl.training.offline_phase import OfflinePhase, learn_offline, specs_of_envs
from dreamer_torchrl.training.progress import Clock, Progress
from dreamer_torchrl.training.pushes import Pushes
from dreamer_torchrl.training.ranks import Agreed, AgreedStop, RunRanks, stop_for
from dreamer_torchrl.training.shards import FOLDER, load_shards
from dreamer_torchrl.training.signals import Interrupted, StopSignals
from dreamer_torchrl.views.imagination import STEPS
from dreamer_torchrl.views.report_page import Reports


class Training:
    """One run in one process, in the folder ``run_dir``."""

    late = 0  # updates that may be under way when the host goes on

    def __init__(self, settings: Settings, run_dir: Path, console: Console, ranks: RunRanks | None = None):
        self.settings, self.run_dir, self.console = settings, run_dir, console
        self.ranks = ranks = ranks or RunRanks()
        own, folder = ranks.divided(settings, ranks.size), ranks.folder(run_dir)
        self.streams = own.env.num_envs
        self.device = build.choose_device(settings.device)
        self.late = self.late if self.device.type == "cpu" else 1
        if settings.offline and ranks.size > 1:
            raise ConfigError(f"offline={settings.offline} is learned from in one process: start it without torchrun.")
        self.checkpoints = Checkpoints(folder / FOLDER, ranks.kept(settings), build.exact_latents(settings))
        first = ranks.rank * self.streams
        no_envs = settings.env.family == "none"
        self.envs = None if no_envs else build.make_envs(settings, "training", self.streams, first=first)
        self.offline = OfflinePhase(settings, self.envs, self.checkpoints) if settings.offline else None
        self.specs = self.offline.specs if self.offline else specs_of_envs(self.envs)
        recorded, continued = self.offline.count if self.offline else 0, bool(self.checkpoints.names())
        console.note(replay_size(own, self.envs or self.specs, folder, continued, recorded))
        self.replay = build.make_replay(own, folder, recorded, ranks.purpose("replay"))
        agent = build.make_agent(settings, self.envs or self.specs).to(self.device)
        for note in build.notes_at_start(settings, agent, self.device):
            console.note(note)
        self.learner = build.make_learner(settings, agent, ranks)
        options = settings.exploration.noise, settings.cuda_graph is not False
        self.policy = build.make_policy(agent, build.seed_for(settings.seed, ranks.purpose("policy")), *options)
        self.drawn = self.policy.generator.get_state()  # of the policy's generator, when the last steps were stored
        self.episodes = Episodes(self.streams, self.specs.full_action_spec)
        plays, record = settings.eval.every and ranks.rank == 0, STEPS if settings.eval.dream else 0
        self.evaluator = Evaluator(settings, agent, settings.eval.video, record) if plays else None
        self.progress = Progress()
        self.pushes = Pushes(settings.collector, self.progress)
        self.clock = Clock(self.progress)
        self.metrics, self.reports = Metrics([]), Reports(run_dir, console.note)
        self.monitor = Monitor(asdict(settings))
        self.skipped_in_a_row, self.went_back = 0, False
        self.under_way: dict[int, Update] = {}  # by their numbers
        self.fault: tuple[str, TensorDictBase] | None = None  # of the last skipped update, with its batch
        self.collector: BaseCollector | None = None
        self.consistent = True  # False while steps are stored or weights change: nothing can be saved then

    def run(self, metrics: Metrics, saved: Saved | None, stop: StopSignals) -> None:
        """Train until ``total_steps``, ``eval.stop_at`` or a signal. The last state is saved, after an error too."""
        self.metrics = metrics
        if saved:
            self.restore(saved)
        else:
            metrics.load_state_dict(Metrics([]).state_dict())  # of a process killed before its first checkpoint
            if self.offline:
                self.offline.fill(self.replay, self.learner.agent)
        self.clock = Clock(self.progress)
        before = replace(self.progress)
        gc.freeze()  # half a million objects of libraries, which collections need not visit
        try:
            self.train(stop)
            while self.diverged:
                self.go_back()
                self.train(stop)
        except Interrupted:  # inside an environment; all that was stored is whole
            pass
        except Exception:
            self.consistent = self.consistent and self.ranks.size == 1  # others do not know that it is time to save
            raise
        finally:
            gc.unfreeze()
            self.tell_failures(self.failures())
            if self.consistent and self.progress != before:  # else it was stopped at once, or finished before
                with stop.saving():
                    self.log()
                    self.save(wait=True)
                if self.settings.log.report and not (self.ranks.rank or stop.requested):  # there is little time then
                    self.reports.refresh(at_end=True)

    def train(self, signals: StopSignals) -> None:
        """Train until the run is finished, stopped, or has skipped too many updates in a row."""
        stop = stop_for(self.ranks, signals)
        if self.offline:
            learn_offline(self, stop)
        collected = self.collected(stop)
        while True:  # the first updates are those that steps have earned before an interruption
            self.update(stop)
            self.pushes.when_due(self.collector, self.policy)
            self.evaluate_when_due(stop)
            if stop.requested or self.diverged or self.progress.finished(self.settings):
                return
            self.policy.actor = self.actor
            agreed = self.store(next(collected), signals)
            if isinstance(stop, AgreedStop):
                stop.requested = agreed.stop
            self.log_and_save(agreed.log, agreed.save)

    def due(self) -> tuple[bool, bool]:
        """Whether it is time to log, and to save."""
        now, settings = time.monotonic(), self.settings
        return now - self.clock.logged_at >= settings.log.every, now - self.clock.saved_at >= settings.checkpoint.every

    def log_and_save(self, log: bool, save: bool) -> None:
        if log:
            self.log()
        if save:
            self.save()

    def collected(self, stop: StopSignals | AgreedStop) -> Iterator[TensorDictBase]:
        made_of = (self.settings.collector, self.envs, self.learner.agent, self.policy, self.episodes)
        self.pushes.made()
        with timeit("collector"), stop.interruptible():
            self.collector = make_collector(*made_of, lambda: self.progress.updates)
        iterator = iter(self.collector)
        while True:
            try:
                with timeit("collector"), stop.interruptible():
                    steps = next(iterator)
            except RuntimeError as error:
                if isinstance(error.__cause__, TooManyFailures):  # in a thread or process of the collector
                    raise error.__cause__ from None
                raise
            yield steps

    def store(self, steps: TensorDictBase, stop: StopSignals) -> Agreed:
        """Store collected steps; each earns its share of an update once there is enough to learn from."""
        settings, progress = self.settings, self.progress
        with self.changing(), timeit("replay"):
            self.replay.extend(steps)
            finished, notes = self.episodes.commit(), self.failures()
            self.drawn = self.policy.generator.get_state()
            agreed = self.ranks.agree(
                steps.numel(),
                self.replay.ready,
                stop.requested is not None,
                *self.due(),
                self.ranks.busy(self.checkpoints),
                (finished, notes) if finished or notes else None,
            )
            progress.steps += agreed.steps
            if progress.steps >= settings.first_update and agreed.ready:
                progress.credit += agreed.steps * settings.updates_per_step
        for rank, (finished, notes) in enumerate(news or ((), ()) for news in agreed.news):
            for stream, total_reward, length in finished:
                progress.add_episode(total_reward)
                number = stream + rank * self.streams
                self.record({"episode/return": total_reward, "episode/length": length, "episode/environment": number})
            self.tell_failures(f"Rank {rank}: {note}" if rank else note for note in notes)
        return agreed

    def update(self, stop: StopSignals | AgreedStop) -> int:
        """Do the updates that were earned, and return how many; what a signal leaves undone stays earned."""
        progress, before = self.progress, self.progress.updates
        while progress.credit >= 1 and not self.diverged and not stop.requested:
            with self.changing():
                progress.credit -= 1
                progress.updates += 1
                with timeit("replay"):
                    batch, where = self.replay.sample()
                with timeit("learner"):
                    self.under_way[progress.updates] = Update(self.learner, self.replay, batch, where)
            self.settle(self.late)
        return progress.updates - before

    def settle(self, but: int = 0) -> None:
        """Read how updates ended, all ``but`` the last ones, which a GPU may still be at; refresh the replay."""
        while len(self.under_way) > but:
            with self.changing():
                number = next(iter(self.under_way))
                with timeit("learner"):
                    update = self.under_way.pop(number)
                    finite = update.finite
                if finite:
                    with timeit("replay"):
                        self.replay.refresh(update.where, update.latents)
                    self.metrics.add(update.metrics)
                    self.skipped_in_a_row = 0
                else:
                    self.progress.skipped += 1
                    self.skipped_in_a_row += 1
                    self.fault = self.learner.fault(update.metrics, update.gradient_norms), update.batch
                    self.console.note(f"Update {number} is skipped: {self.fault[0]} is not finite.")

    def evaluate_when_due(self, stop: StopSignals | AgreedStop) -> None:
        """Play an evaluation, on rank 0, and let all ranks know its mean."""
        if stop.requested or self.diverged or not self.progress.evaluation_is_due(self.settings):
            return
        self.settle()
        if self.ranks.rank == 0:
            play_evaluation(self, stop)
        with self.changing():
            self.progress.__dict__.update(self.ranks.told(asdict(self.progress)))

    def log(self) -> None:
        self.settle()
        progress = self.progress
        values = {f"train/{key}": value for key, value in self.metrics.means().items()}
        values |= self.clock.rates(self.settings)
        values |= {"count/updates": progress.updates, "count/updates_skipped": progress.skipped}
        values |= {"count/episodes": progress.episodes, "count/environment_failures": progress.environment_failures}
        if progress.best is not None:
            values["best/return"] = progress.best
        values |= progress.compared() | self.pushes.values(self.collector)
        found = self.monitor.new({"step": progress.position, **values})
        self.record(values | memory_bytes() | {f"finding/{finding.name}": 1.0 for finding in found})
        for finding in found:
            self.console.note(f"Monitor: {finding}")

    def record(self, values: dict[str, float]) -> None:
        frames = self.progress.steps * self.settings.env.frames_per_step
        self.metrics.write(self.progress.position, values | {"count/frames": frames})

    def save(self, wait: bool = False) -> None:
        self.settle()
        self.clock.note_saved()
        self.checkpoints.save(self.progress.position, self.state(), self.replay, wait)
        if wait:
            self.checkpoints.wait()
        if self.checkpoints.failure:
            self.console.note(str(self.checkpoints.failure))

    def state(self) -> dict[str, Any]:
        state = {
            "learner": self.learner.state_dict(),
            "specs": self.specs.to_tree(),
            "episodes": self.episodes.state_dict(),
        }
        state |= {"policy_generator": self.drawn, "progress": asdict(self.progress)}
        if self.ranks.size > 1:
            self.ranks.check_same(self.learner.agent.parameters(), "The weights")
            state["ranks"] = {"rank": self.ranks.rank, "size": self.ranks.size}
        if self.ranks.rank:  # the weights are in the checkpoint of rank 0
            state["learner"] = {"generator": state["learner"]["generator"]}
        return state | {"metrics": self.metrics.state_dict() | {"said": sorted(self.monitor.said)}}

    def load(self) -> Saved | None:
        return load_shards(self.ranks, self.settings, self.run_dir, self.checkpoints, self.replay)

    def restore(self, saved: Saved) -> None:
        own = saved.parts["learner"]
        self.learner.load_state_dict(self.ranks.told(own) | {"generator": own["generator"]})
        set_generator_state(self.policy.generator, saved.parts["policy_generator"])
        self.progress.__dict__.update(saved.parts["progress"])
        self.metrics.load_state_dict(saved.parts["metrics"])
        self.monitor.said = set(saved.parts["metrics"].get("said", ()))
        self.episodes.load_state_dict(saved.parts["episodes"])
        self.drawn = self.policy.generator.get_state()
        self.console.note(f"Resumed at step {self.progress.position:,} from {saved.path}.")

    def go_back(self) -> None:
        """Return to the last checkpoint after too many skipped updates, once; the next time is the end."""
        fault, batch = self.fault
        try:
            saved = None if self.went_back else self.load()
        except NoSoundCheckpoint as error:
            self.console.note(str(error))
            saved = None
        if saved is None:
            self.consistent = False  # the last checkpoint is better than what is here
            raise Diverged(fault, batch, self.ranks.folder(self.run_dir) / "faults", self.progress.updates)
        self.console.note(f"{MOST_SKIPPED} updates in a row were not finite: back to {saved.path}, this once.")
        self.went_back, self.skipped_in_a_row = True, 0
        self.under_way.clear()
        self.close_collector()
        self.restore(saved)
        self.clock = Clock(self.progress)
        # The same random numbers would lead to the same place.
        for part, name in ((self.learner, "learner"), (self.replay, "replay")):
            purpose = self.ranks.purpose(f"{name}, after going back")
            part.generator.manual_seed(build.seed_for(self.settings.seed, purpose))

    def close(self) -> None:
        self.close_collector()
        if self.envs is not None:
            self.envs.close()
        if self.evaluator is not None:
            self.evaluator.close()

    def close_collector(self) -> None:
        if self.collector is not None:
            self.collector.shutdown(raise_on_error=False)
            self.collector = None

    def failures(self) -> list[str]:
        """What environments have reported; threads of a collector may add some meanwhile."""
        notes = [] if self.envs is None else self.envs.notes
        return [notes.pop(0) for _ in range(len(notes))]

    def tell_failures(self, notes: Iterable[str]) -> None:
        for note in notes:
            self.console.note(note)
            self.progress.environment_failures += "failed and is replaced" in note

    @contextmanager
    def changing(self) -> Iterator[None]:
        """What is done inside is done as a whole: after an error in it there is nothing that could be saved."""
        self.consistent = False
        yield
        self.consistent = True

    @property
    def actor(self) -> Actor:
        """What acts now: an exploring behaviour until ``exploration.until``, then that of the task."""
        if self.progress.steps >= self.settings.exploration.until:
            return self.learner.agent.actor
        return next(term.explorer for term in self.learner.loss.extra if isinstance(term, Behaviour))

    @property
    def diverged(self) -> bool:
        return self.skipped_in_a_row >= MOST_SKIPPED
