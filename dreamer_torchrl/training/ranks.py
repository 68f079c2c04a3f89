"""The processes that ``torchrun`` starts for one run: what each has of it, and what all do at the same step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.learners.distributed import Ranks
from dreamer_torchrl.training.signals import StopSignals

PATIENCE = timedelta(hours=1)  # others may wait so long for a rank, such as for one that evaluates


class Agreed(NamedTuple):
    """What all ranks know after a step."""

    steps: int  # collected by all of them
    ready: bool  # all have enough to learn from
    stop: bool  # one of them got a signal
    log: bool
    save: bool
    news: list[Any]  # of all ranks, by rank


class RunRanks(Ranks):
    """The ranks of a run; without a group this process is all of it."""

    def told(self, value: Any) -> Any:
        """The value that rank 0 has."""
        if self.group is None:
            return value
        box = [value]
        with self.reached():
            dist.broadcast_object_list(box, 0, self.group, device=torch.device("cpu"))
        return box[0]

    def together(self, value: Any) -> list[Any]:
        """The values that all ranks have."""
        if self.group is None:
            return [value]
        values = [None] * self.size
        with self.reached():
            dist.all_gather_object(values, value, self.group)
        return values

    def agree(self, steps: int, ready: bool, stop: bool, log: bool, save: bool, busy: bool, news: Any) -> Agreed:
        """One small all-reduce in each step. ``log`` and ``save`` are as rank 0 wants it, unless a rank is ``busy``.

        ``news``, which may be None, reach all.
        """
        if self.group is None:
            return Agreed(steps, ready, stop, log, save and not busy, [news])
        due = [log and self.rank == 0, save and self.rank == 0]
        numbers = torch.tensor([int(one) for one in (steps, not ready, stop, *due, busy, news is not None)])
        with self.reached():
            dist.all_reduce(numbers, group=self.group)
        steps, unready, stop, log, save, busy, some = numbers.tolist()
        save, news = save and not busy, self.together(news) if some else []
        return Agreed(steps, not unready, bool(stop), bool(log), bool(save), news)

    @staticmethod
    def divided(settings: Settings, size: int) -> Settings:
        """The part of one of ``size`` ranks: environments, batch and replay; all other numbers are of the whole run."""
        environments, replay = settings.env.num_envs, settings.replay
        for name, count in (("env.num_envs", environments), ("replay.batch", replay.batch)):
            if count % size:
                more = -(-count // size) * size
                raise ConfigError(f"{name}={count} is not a multiple of the {size} ranks: give {name}={more}.")
        share = replace(replay, batch=replay.batch // size, capacity=replay.capacity // size)
        return replace(settings, env=replace(settings.env, num_envs=environments // size), replay=share)

    def folder(self, run_dir: Path, rank: int | None = None) -> Path:
        """Where a rank, this one if left out, saves what is its own."""
        rank = self.rank if rank is None else rank
        return run_dir / "ranks" / str(rank) if rank else run_dir

    def kept(self, settings: Settings) -> int:
        """Checkpoints that a rank keeps: one is that which all have, whoever is the first to save."""
        return max(settings.checkpoint.keep, min(self.size, 2))

    def busy(self, checkpoints: Checkpoints) -> bool:
        """Whether this rank is still saving; if it failed, the others must not remove the last one that all have."""
        if self.size > 1 and checkpoints.failure:
            raise checkpoints.failure
        return checkpoints.busy

    def purpose(self, name: str) -> str:
        """What a seed of this rank is for."""
        return f"{name}, rank {self.rank}" if self.rank else name


class AgreedStop:
    """`StopSignals` for a loop in several ranks, which stop at the same step: ``requested`` once all know of it."""

    requested = False

    def interruptible(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def joined() -> Iterator[RunRanks]:
    """The ranks of the ``torchrun`` that started this process, or this process alone."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield RunRanks()
        return
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, timeout=PATIENCE, store=meeting_point(), rank=rank, world_size=size)
    try:
        yield RunRanks(dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def meeting_point() -> dist.Store:
    """The store of torchrun, under a name of its own for each restart: it still has the addresses of ended processes.

    Agents of several machines count restarts differently; there TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 gives a new store.
    """
    restart = os.environ["TORCHELASTIC_RESTART_COUNT"] if os.environ["GROUP_WORLD_SIZE"] == "1" else "0"
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=PATIENCE)
    return dist.PrefixStore(f"restart {restart}", store)


def stop_for(ranks: RunRanks, stop: StopSignals) -> StopSignals | AgreedStop:
    return stop if ranks.group is None else AgreedStop()
