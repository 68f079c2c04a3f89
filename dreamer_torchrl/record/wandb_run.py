"""Weights & Biases as one sink among others: real runs that never stop, slow or delay the training."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Literal

from dreamer_torchrl.record.wandb_log import Sent, lost_lines, sent_before
from dreamer_torchrl.record.wandb_start import FINISH_SECONDS, Place, begin, in_words

if TYPE_CHECKING:
    import wandb
    from torch import nn

QUEUE_LENGTH = 10_000
BEST, WEIGHTS, CONFIGURATION = "best", "weights.npz", "config.yaml"
"""Folder of the best agents in ``RUN/wandb``, and the files of each."""


@dataclass(frozen=True)
class Record:
    """What one step gives to W&B: its values, a video, or the weights of the best agent so far."""

    step: int
    values: dict[str, Any]
    weights: dict[str, Any] | None = None


class WandbRun:
    """Send scalars, videos and the best agents to Weights & Biases from a thread of its own.

    The run's files lie in ``RUN/wandb``. Sent are the configuration, the scalars, the videos, the agents if they are
    asked for, and the host's name; no package list, code, git state, console output, machine statistics or error
    reports. Without a key or a network, an online run becomes an offline one, and `note` says why.

    A resumed training goes on in the same run, whose id is kept. W&B cannot take back what it has, so what a killed
    process had sent after its last checkpoint stays, and the resumed one leaves these steps out when it does them
    again; what the checkpoint knows and W&B does not (its own process writes every 15 seconds) is sent from
    ``metrics.jsonl``. So each record is there once. A video or agent of those seconds may be missing: it lies in
    ``RUN/videos`` or comes with the next best.

    Args:
        run_dir: the run directory.
        mode: ``disabled`` does nothing and imports nothing.
        place: where the run appears.
        config: the resolved configuration.
        note: prints a line.
        artifact: whether the best agents are sent.
        kept: bytes of ``metrics.jsonl`` that a resumed training knows.
        hours: how long the run has trained; each record is given it.

    Example:
        >>> run = WandbRun(Path("runs/cartpole"), "disabled", config={"seed": 0})
        >>> run.write(100, {"episode/return": 21.0})
        >>> run.close()
    """

    def __init__(
        self,
        run_dir: Path,
        mode: Literal["disabled", "offline", "online"],
        place: Place | None = None,
        config: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = print,
        artifact: bool = False,
        kept: int = 0,
        hours: Callable[[], float] | None = None,
    ):
        self._run_dir, self._note, self._artifact, self._kept, self._hours = run_dir, note, artifact, kept, hours
        self._queue: Queue[Record | None] = Queue(QUEUE_LENGTH)
        self._off = Event()
        self._worker: Thread | None = None
        self._dropped = False
        if mode == "disabled":
            return
        # W&B's reports about itself hold stack traces, and when they do not arrive it prints into the progress line.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # before wandb is imported for the first time
        try:
            sent = sent_before(run_dir / "wandb", "*run-*" if mode == "offline" else "run-*")
            run, why_offline = begin(mode, run_dir, place or Place(), config or {})
            if why_offline:
                self._note(f"W&B: {why_offline}; this run is written offline")
                sent = sent_before(run_dir / "wandb")
        except Exception as error:
            self._give_up(error)
            return
        self._offline = run.settings.mode == "offline"
        self._worker = Thread(target=self._work, args=(run, sent), name="wandb-run", daemon=True)
        self._worker.start()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Queue the values of a step; this takes microseconds."""
        self._put(Record(step, {**values, "time/hours": self._hours()} if self._hours else dict(values)))

    def video(self, step: int, name: str, path: Path) -> None:
        """Queue a video."""
        self._put(Record(step, {name: path}))

    def best(self, step: int, value: float, agent: nn.Module) -> None:
        """Queue the weights as they are now; ``value`` is the return of their evaluation."""
        if self._artifact and self._worker is not None:
            weights = {key: tensor.detach().cpu().numpy().copy() for key, tensor in agent.state_dict().items()}
            self._put(Record(step, {"best/return": value}, weights))

    def close(self) -> None:
        """Send what waits, for a limited time; if anything stays behind, print the command that sends it later."""
        if self._worker is None:
            return
        if not self._off.is_set():
            try:
                self._queue.put(None, timeout=FINISH_SECONDS)
            except Full:
                self._off.set()
        self._worker.join(FINISH_SECONDS + 5)
        if self._offline or self._off.is_set() or self._worker.is_alive():
            folders = shlex.join(str(folder) for folder in unsent_folders(self._run_dir / "wandb", self._offline))
            self._note(f"W&B: to upload this run, use: wandb sync {folders}")
        self._worker = None

    def _put(self, record: Record) -> None:
        if self._worker is None or self._off.is_set():
            return
        try:
            self._queue.put_nowait(record)
        except Full:
            if not self._dropped:
                self._dropped = True
                self._note("warning: W&B does not keep up; records are left out there (metrics.jsonl has them all)")

    def _work(self, run: wandb.Run, sent: Sent | None) -> None:
        """The only thread that talks to wandb: its calls may wait for another process or for the network."""
        try:
            for record in self._records(sent):
                if record.weights is None:
                    run.log({"step": record.step} | {key: loggable(value) for key, value in record.values.items()})
                else:
                    self._log_best(run, record)
            run.finish()
            if not self._offline:  # all of them have arrived
                shutil.rmtree(self._run_dir / "wandb" / BEST, ignore_errors=True)
        except Exception as error:
            self._give_up(error)

    def _records(self, sent: Sent | None) -> Iterator[Record]:
        """What an earlier process has lost, then what comes, without what W&B has already."""
        if sent is not None:
            for step, values in lost_lines(self._run_dir / "metrics.jsonl", self._kept, sent):
                yield Record(step, values)
        sent, newest, behind = sent or Sent(), -1, False
        while (record := self._queue.get()) is not None:
            if record.step != newest:  # smaller where a training went back to a checkpoint after too many faults
                behind = record.step < newest
            newest = max(newest, record.step)
            if not behind and not sent.has(record.step, record.values):
                yield record

    def _log_best(self, run: wandb.Run, record: Record) -> None:
        """Write an agent and name it to W&B, which uploads it when it has time, or at ``wandb sync``."""
        try:
            run.log_artifact(best_agent(run.id, self._run_dir, record), aliases=["best"])
        except OSError as error:  # no room for it: the curves go on
            self._note(f"warning: W&B has no agent of step {record.step:,} ({error})")

    def _give_up(self, error: Exception) -> None:
        """Go on without W&B, whatever it was: pictures of a run are no reason to lose it."""
        self._off.set()
        self._note(f"warning: W&B failed ({in_words(error)}); training goes on without it")
        while True:  # nobody will read what still waits
            try:
                self._queue.get_nowait()
            except Empty:
                return


def best_agent(run_id: str, run_dir: Path, record: Record) -> wandb.Artifact:
    """Weights and configuration as files that need no pickle, in a folder that stays until they are uploaded."""
    import numpy as np
    import wandb

    folder = run_dir / "wandb" / BEST / f"{record.step:012d}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / WEIGHTS).open("wb") as file:
        np.savez(file, **record.weights)
    shutil.copyfile(run_dir / CONFIGURATION, folder / CONFIGURATION)
    details = {"step": record.step, "return": record.values["best/return"]}
    artifact = wandb.Artifact(f"agent-{run_id}", "model", metadata=details)
    for path in (folder / WEIGHTS, folder / CONFIGURATION):
        # Else W&B copies each file to the user's home, and a second time when it uploads it.
        artifact.add_file(str(path.absolute()), name=path.name, policy="immutable", skip_cache=True)
    return artifact


def unsent_folders(folder: Path, offline: bool) -> list[Path]:
    """Folders of this run, oldest first, that W&B's server has not got, as far as this machine knows."""
    found = sorted(folder.glob("offline-run-*" if offline else "run-*"), key=lambda path: path.name)
    return [path for path in found if not list(path.glob("*.synced"))] if offline else found[-1:]


def loggable(value: Any) -> Any:
    """A value as W&B takes it."""
    import wandb

    return wandb.Video(str(value)) if isinstance(value, Path) else value
