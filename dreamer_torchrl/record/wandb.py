"""Weights & Biases: TorchRL's `WandbLogger` in a thread, so that training never waits for it or ends with it."""

from __future__ import annotations

import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from queue import Empty, Full, Queue
from statistics import fmean
from threading import Thread
from typing import Any, Literal

import numpy as np
from torch import nn
from torchrl.record.loggers import WandbLogger

from dreamer_torchrl.record.metrics import RunLogger

QUEUE_LENGTH = 10_000
START_SECONDS, FINISH_SECONDS = 15, 20


class WandbThread(RunLogger):
    """Send scalars, video files and the best agents to Weights & Biases from a thread.

    Sent too are the configuration and the host's name; no package list, code, git state, console output or statistics
    of the machine. Without a key or a server, an online run becomes an offline one. A resumed one keeps its id.

    Args:
        place: project, entity, name, group and tags, as of ``wandb.init``.
        artifact: whether the best agents are sent.
        hours: how long the run has trained; each record is given it.
    """

    def __init__(
        self,
        run_dir: Path,
        mode: Literal["offline", "online"],
        place: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = print,
        artifact: bool = False,
        hours: Callable[[], float] | None = None,
    ):
        self.folder, self.offline = run_dir / "wandb", mode == "offline"
        self.place, self.config = dict(place or {}), dict(config or {})
        self.note, self.artifact, self.hours = note, artifact, hours
        self._queue: Queue[tuple[int, dict[str, Any]] | None] = Queue(QUEUE_LENGTH)
        self._best: tuple[int, float, dict[str, Any]] | None = None  # step, mean return, weights
        self._off, self._dropped = False, False
        self._thread = Thread(target=self._work, name="wandb-run", daemon=True)
        self._thread.start()

    def log_metrics(self, metrics: dict[str, Any], step: int) -> None:
        if self._off:
            return
        try:
            self._queue.put_nowait((step, metrics | ({"time/hours": self.hours()} if self.hours else {})))
        except Full:
            if not self._dropped:
                self.note("warning: W&B does not keep up; records are left out there (metrics.jsonl has them all)")
            self._dropped = True

    def log_video_file(self, name: str, path: Path, step: int) -> None:
        self.log_metrics({name: path}, step)

    def log_best(self, agent: nn.Module, value: float, step: int) -> None:
        """Keep the weights as they are now for the thread; of several that wait, the newest is sent."""
        if self.artifact and not self._off:
            weights = {key: tensor.detach().cpu().numpy().copy() for key, tensor in agent.state_dict().items()}
            self._best = step, value, weights

    def close(self) -> None:
        """Send what waits, for a limited time; if anything stays behind, print the command that sends it later."""
        try:
            self._queue.put(None, timeout=FINISH_SECONDS)
        except Full:
            self._off = True
        self._thread.join(START_SECONDS + FINISH_SECONDS + 5)
        if self.offline or self._off or self._thread.is_alive():
            folders = sorted(self.folder.glob("offline-run-*" if self.offline else "run-*"))
            unsent = [str(folder) for folder in folders if not list(folder.glob("*.synced"))]
            if unsent:
                self.note(f"W&B: to upload this run, use: wandb sync {shlex.join(unsent)}")

    def _work(self) -> None:
        """The only thread that talks to wandb: its calls may wait for another process or for the network."""
        try:
            logger = self._begin()
            for step, values in self._rows(logger.experiment.starting_step):
                logger.log_metrics(values, step=step, override_global_step=True)
                if not self.offline:
                    self._send_best(logger)
            self._send_best(logger)
            logger.experiment.finish(exit_code=int(self.failed))
        except Exception as error:  # see below
            self._off = True
            self.note(f"warning: W&B failed ({one_line(error)}); training goes on without it")
            with suppress(Empty):  # nobody will read what still waits, and close() must find room
                while True:
                    self._queue.get_nowait()

    def _begin(self) -> WandbLogger:
        # W&B's reports about itself hold stack traces, and when they do not arrive it prints into the progress line.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported for the first time
        import wandb

        if self.offline:
            return self._open()
        try:
            wandb.setup(wandb.Settings(silent=True))  # else `login` prints
            if wandb.login(prompt=False, verify=False):
                return self._open()  # an error after START_SECONDS if no server answers
            reason = "there is no API key (set WANDB_API_KEY or run: wandb login)"
        except Exception as error:  # of many classes, not all of them wandb's own
            reason = one_line(error)
        wandb.teardown()  # its process would say that the run's id is in use
        self.offline = True
        self.note(f"W&B: {reason}; this run is written offline")
        return self._open()

    def _open(self) -> WandbLogger:
        import wandb

        wanted = {"silent": True, "console": "off", "init_timeout": START_SECONDS, "finish_timeout": FINISH_SECONDS}
        wanted |= {"save_code": False, "disable_code": True, "disable_git": True, "finish_timeout_raises": True}
        wanted |= {"x_save_requirements": False, "x_disable_stats": True, "x_disable_machine_info": True}
        known = wandb.Settings.model_fields  # of another version, others
        id_file = self.folder / "run_id"
        if not id_file.exists():
            id_file.parent.mkdir(parents=True, exist_ok=True)
            id_file.write_text(uuid.uuid4().hex[:12] + "\n")
        place = {"name": None, "project": None} | self.place
        return WandbLogger(
            place.pop("name"),
            log_dir=str(self.folder.parent),
            id=id_file.read_text().strip(),
            log_env_packages=False,
            mode="offline" if self.offline else "online",
            job_type="train",
            config=self.config,
            settings=wandb.Settings(**{key: value for key, value in wanted.items() if key in known}),
            **place,
        )

    def _rows(self, first: int) -> Iterator[tuple[int, dict[str, Any]]]:
        """One row for each step from ``first``, in their order; numbers that come twice in a step are averaged."""
        import wandb

        for step, records in groupby(iter(self._queue.get, None), itemgetter(0)):
            gathered: dict[str, list[Any]] = {}
            for _, values in records:
                for key, value in values.items():
                    gathered.setdefault(key, []).append(value)
            if step >= first and gathered:
                first, row = step + 1, {}
                for key, found in gathered.items():
                    row[key] = wandb.Video(str(found[-1])) if isinstance(found[-1], Path) else fmean(found)
                yield step, row

    def _send_best(self, logger: WandbLogger) -> None:
        """Hand over the newest agent; its file is deleted when it was uploaded, and stays for ``wandb sync``."""
        import wandb

        best, self._best = self._best, None
        if best is None:
            return
        folder, (step, value, weights) = self.folder / "best", best
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / "weights.npz").open("wb") as file:
                np.savez(file, **weights)
            shutil.copyfile(self.folder.parent / "config.yaml", folder / "config.yaml")
            details = {"step": step, "return": value}
            artifact = wandb.Artifact(f"agent-{logger.experiment.id}", "model", metadata=details)
            for path in folder.iterdir():
                # Else W&B copies each file to the user's home, and a second time when it uploads it.
                artifact.add_file(str(path.absolute()), name=path.name, policy="immutable", skip_cache=True)
            logged = logger.experiment.log_artifact(artifact, aliases=["best"])
            if not self.offline:
                logged.wait()
                shutil.rmtree(folder, ignore_errors=True)
        except OSError as error:  # no room for it: the curves go on
            self.note(f"warning: W&B has no agent of step {step:,} ({error})")


def one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
