"""The checkpoint of a run of several ranks: each saves its own part, all continue from the same step."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, Saved
from dreamer_torchrl.checkpoint.manifest import DamagedFile, NoSoundCheckpoint
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.data.samplers import OnlineSampler
from dreamer_torchrl.training.build import make_replay, seed_for
from dreamer_torchrl.training.ranks import RunRanks

FOLDER = "checkpoints"


def load_shards(
    ranks: RunRanks, settings: Settings, run_dir: Path, checkpoints: Checkpoints, replay: Replay
) -> Saved | None:
    """The newest checkpoint that is sound on all ranks, this rank's steps in ``replay``; None if there is none.

    With another number of ranks than the one that saved it, streams and their steps are redistributed.
    """
    if ranks.size == 1 and not (run_dir / "ranks").exists():
        return checkpoints.load(replay)
    checkpoints.wait()
    found = ranks.told(Checkpoints(run_dir / FOLDER).names())
    faults: list[str] = []
    for name in reversed(found):
        try:
            saved, fault = read_shard(name, ranks, settings, run_dir, checkpoints, replay), None
        except (DamagedFile, FileNotFoundError) as error:
            saved, fault = None, f"{name} of rank {ranks.rank} cannot be used: {error}."
        if not (failed := [one for one in ranks.together(fault) if one]):
            checkpoints.continue_from(name)
            saved.damaged.extend(faults)
            return saved
        faults += failed
    if faults:
        raise NoSoundCheckpoint("\n".join(["No checkpoint can be used by all ranks, none was changed.", *faults]))
    checkpoints.continue_from(None)
    return None


def read_shard(
    name: str, ranks: RunRanks, settings: Settings, run_dir: Path, checkpoints: Checkpoints, replay: Replay
) -> Saved:
    first, size = Checkpoints(run_dir / FOLDER), None
    if ranks.rank == 0:
        with suppress(DamagedFile):  # is read once more below
            size = first.read(name).parts.get("ranks", {"size": 1})["size"]
    size = ranks.told(size)
    if size in (None, ranks.size):
        return checkpoints.read(name, replay)
    saved = first.read(name)
    saved.parts["episodes"] = redistribute(name, size, ranks, settings, run_dir, replay)
    for part, key in ((saved.parts["learner"], "generator"), (saved.parts, "policy_generator")):
        seed = seed_for(settings.seed, ranks.purpose(f"{key} from step {saved.step} with {ranks.size} ranks"))
        part[key] = torch.Generator().manual_seed(seed).get_state()
    told = f"Saved by {size} rank{'s' * (size > 1)}, continued by {ranks.size}"
    saved.damaged.append(f"{told}: environments and their steps are redistributed, random numbers start anew.")
    return saved


def redistribute(
    name: str, size: int, ranks: RunRanks, settings: Settings, run_dir: Path, replay: Replay
) -> dict[str, list[Any]]:
    """Fill the replay with the steps of this rank's streams, which ``size`` ranks have saved; their episodes."""
    theirs, mine = settings.env.num_envs // size, settings.env.num_envs // ranks.size  # streams of each rank
    own = range(ranks.rank * mine, (ranks.rank + 1) * mine)
    episodes: dict[str, list[Any]] = {}
    parts = []
    for rank in range(size):
        wanted = [stream for stream in own if stream // theirs == rank]
        if not wanted:
            continue
        shard = make_replay(RunRanks.divided(settings, size))
        saved = Checkpoints(ranks.folder(run_dir, rank) / FOLDER).read(name, shard)
        steps = shard.copy(shard.oldest, shard.written)
        stream = steps["stream"].flatten() + rank * theirs  # [M], its number in the run
        kept = (stream >= wanted[0]) & (stream <= wanted[-1])
        parts.append(steps.set("stream", (stream - own.start).unsqueeze(-1))[kept])
        for key, values in saved.parts["episodes"].items():
            episodes.setdefault(key, []).extend(values[index - rank * theirs] for index in wanted)
    steps = torch.cat(parts)
    if len(steps):
        replay.extend(steps[in_time(steps["stream"].flatten())])
        if isinstance(replay.sampler, OnlineSampler):
            replay.sampler.fresh.clear()  # they were new to the ranks that collected them
    return episodes


def in_time(stream: Tensor) -> Tensor:
    """An order of steps of several streams ``[M]``, each in order, in which all streams end together."""
    left = torch.zeros_like(stream)
    for number in stream.unique():
        own = (stream == number).nonzero().flatten()
        left[own] = torch.arange(len(own) - 1, -1, -1).to(left)
    return left.argsort(descending=True, stable=True)
