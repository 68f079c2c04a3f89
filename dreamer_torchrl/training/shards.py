"""The checkpoint of a run of several ranks: each saves its own part, all continue from the same step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, Saved
from dreamer_torchrl.checkpoint.manifest import DamagedFile, NoSoundCheckpoint
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.data.replay import Replay
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
    first = Checkpoints(run_dir / FOLDER)
    size = ranks.told(size_of(first, name) if ranks.rank == 0 else None)
    if size is None:
        raise DamagedFile("that of rank 0 is damaged")
    if size == ranks.size:
        return checkpoints.read(name, replay)
    saved = first.read(name)
    saved.parts["episodes"] = redistribute(name, size, ranks, settings, run_dir, replay)
    for part, key in ((saved.parts["learner"], "generator"), (saved.parts, "policy_generator")):
        seed = seed_for(settings.seed, ranks.purpose(f"{key} from step {saved.step} with {ranks.size} ranks"))
        part[key] = torch.Generator().manual_seed(seed).get_state()
    told = f"Saved by {size} rank{'s' * (size > 1)}, continued by {ranks.size}"
    saved.damaged.append(f"{told}: environments and their steps are redistributed, random numbers start anew.")
    return saved


def size_of(checkpoints: Checkpoints, name: str) -> int | None:
    """How many ranks have saved it; None if it is damaged."""
    try:
        return checkpoints.read(name).parts.get("ranks", {"size": 1})["size"]
    except DamagedFile:
        return None


def redistribute(
    name: str, size: int, ranks: RunRanks, settings: Settings, run_dir: Path, replay: Replay
) -> dict[str, list[Any]]:
    """Fill the replay with the steps of this rank's streams, which ``size`` ranks have saved; their episodes."""
    theirs, mine = settings.env.num_envs // size, settings.env.num_envs // ranks.size  # streams of each rank
    own = range(ranks.rank * mine, (ranks.rank + 1) * mine)
    episodes: dict[str, list[Any]] = {}
    for rank in range(size):
        wanted = [stream for stream in own if stream // theirs == rank]
        if not wanted:
            continue
        shard = make_replay(RunRanks.divided(settings, size))
        saved = Checkpoints(ranks.folder(run_dir, rank) / FOLDER).read(name, shard)
        steps = shard.copy(shard.oldest, shard.written)
        stream = steps["stream"].flatten() + rank * theirs  # [M], its number in the run
        kept = (stream >= wanted[0]) & (stream <= wanted[-1])
        steps = steps.set("stream", (stream - own.start).unsqueeze(-1))[kept]
        if len(steps):
            replay.extend(steps)
        for key, values in saved.parts["episodes"].items():
            episodes.setdefault(key, []).extend(values[index - rank * theirs] for index in wanted)
    return episodes
