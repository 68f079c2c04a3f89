"""One run in several ranks: what each has of it, kill -9 of a rank, and continuing with as many or others."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, SaveFailed
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.data.replay import Replay
from dreamer_torchrl.training.build import make_replay
from dreamer_torchrl.training.ranks import AgreedStop, RunRanks
from dreamer_torchrl.training.shards import in_time

SIZES = "size.belief=32 size.hidden=8 size.stochastic=4 size.classes=4 size.units=8"
TINY = f"{SIZES} env.num_envs=4 prefill=100 replay.batch=4 replay.length=8 replay.capacity=100000 train_ratio=8"
QUIET = "eval.every=0 log.report=false log.every=1 checkpoint.every=1"


def torchrun(run_dir: Path, ranks: int, steps: int, *options: str) -> subprocess.Popen[str]:
    train = ["-m", "dreamer_torchrl.train", f"run_dir={run_dir}", *TINY.split(), *QUIET.split(), f"total_steps={steps}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    return subprocess.Popen([*command, *train], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    printed, _ = process.communicate(timeout=280)
    assert process.returncode == code, printed
    return printed


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The processes of the ranks, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for child in map(int, children):
        entries = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        rank = next((entry[5:] for entry in entries if entry.startswith(b"RANK=")), None)
        if rank is not None:
            found[int(rank)] = child
    return [found[rank] for rank in sorted(found)]


def wait_for_checkpoint(run_dir: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if all(Checkpoints(folder / "checkpoints").names() for folder in (run_dir, run_dir / "ranks" / "1")):
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint: {process.communicate()[0]}")


def state_of(run_dir: Path, rank: int, ranks: int) -> dict:
    """What a rank has saved last: weights on rank 0, its own steps, progress."""
    folder, settings = RunRanks().folder(run_dir, rank), load([f"run_dir={run_dir}"]).settings
    replay = make_replay(RunRanks.divided(settings, ranks))
    saved = Checkpoints(folder / "checkpoints").load(replay)
    progress = {name: saved.parts["progress"][name] for name in ("steps", "updates", "episodes", "recent", "credit")}
    steps = replay.copy(replay.oldest, replay.written).to_dict()
    return {"learner": saved.parts["learner"], "steps": steps, "progress": progress}


def same(one: object, other: object) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one.equal(other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.slow
def test_a_rank_is_killed_and_the_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(torchrun(whole, 2, 600))
    process = torchrun(killed, 2, 600)
    wait_for_checkpoint(killed, process)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    printed = finish(process, code=1)
    assert re.search(r"Rank 0 of 2 does not reach the others|Signal 9 \(SIGKILL\)", printed)
    before = Checkpoints(killed / "checkpoints").names()[-1]
    assert int(before[:12]) < 600
    assert "Resumed at step" in finish(torchrun(killed, 2, 600))
    for rank in range(2):
        assert same(state_of(killed, rank, 2), state_of(whole, rank, 2))
    # The newest of one rank is damaged: all take the one before
    last = state_of(whole, 0, 2)
    newest = whole / "checkpoints" / Checkpoints(whole / "checkpoints").names()[-1]
    (newest / "learner.pt").write_bytes(b"")
    printed = finish(torchrun(whole, 2, 600))
    assert f"{newest.name} of rank 0 cannot be used" in printed and "Resumed at step" in printed
    assert same(state_of(whole, 0, 2), last)
    # With other numbers of ranks
    printed = finish(torchrun(killed, 1, 700))
    assert "Saved by 2 ranks, continued by 1: environments and their steps are redistributed" in printed
    alone = state_of(killed, 0, 1)
    assert alone["progress"]["steps"] == 700 and len(alone["steps"]["stream"]) == 700
    assert torch.bincount(alone["steps"]["stream"].flatten()).tolist() == [175] * 4
    printed = finish(torchrun(killed, 2, 800))
    assert "Saved by 1 rank, continued by 2" in printed
    first, second = (state_of(killed, rank, 2) for rank in range(2))
    assert first["progress"]["steps"] == 800 and first["progress"] == second["progress"]
    assert [len(shard["steps"]["stream"]) for shard in (first, second)] == [400, 400]


@pytest.mark.slow
def test_torchrun_restarts_a_run_from_its_last_checkpoint(tmp_path: Path) -> None:
    process = torchrun(tmp_path / "run", 2, 500, "--max-restarts=1")
    wait_for_checkpoint(tmp_path / "run", process)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    printed = finish(process)
    assert "Resumed at step" in printed and "Finished and saved at step 500" in printed


def test_a_rank_has_its_part_of_what_counts_for_the_run() -> None:
    settings = load(["env.num_envs=8", "replay.batch=4", "replay.capacity=1000"]).settings
    own = RunRanks.divided(settings, 4)
    assert (own.env.num_envs, own.replay.batch, own.replay.capacity) == (2, 1, 250)
    assert replace(own, env=settings.env, replay=settings.replay) == settings
    with pytest.raises(ConfigError, match=r"replay.batch=4 is not a multiple of the 8 ranks: give replay.batch=8"):
        RunRanks.divided(settings, 8)


def test_streams_of_several_ranks_are_put_side_by_side() -> None:
    """The last steps of all are the newest in the replay."""
    assert in_time(torch.tensor([0, 0, 0, 1, 1])).tolist() == [0, 1, 3, 2, 4]


def test_ranks_keep_a_checkpoint_that_all_have(tmp_path: Path) -> None:
    """Two at least; and where one cannot save, the others do not go on until theirs are newer than all of its own."""
    ranks, settings = RunRanks(), load(["checkpoint.keep=1"]).settings
    assert ranks.kept(settings) == 1
    ranks.size = 2
    assert ranks.kept(settings) == 2
    (tmp_path / "file").touch()
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    assert not ranks.busy(checkpoints)
    checkpoints.save(7, {}, Replay(capacity=20, streams=1, batch=1, length=4))
    checkpoints.wait()
    with pytest.raises(SaveFailed, match="step 7 was not written"):
        ranks.busy(checkpoints)


def test_one_rank_agrees_with_itself() -> None:
    ranks = RunRanks()
    agreed = ranks.agree(3, ready=True, stop=False, log=True, save=True, busy=True, news="n")
    assert agreed == (3, True, False, True, False, ["n"])
    assert ranks.told(1) == 1 and ranks.together(1) == [1] and ranks.purpose("replay") == "replay"
    with AgreedStop().interruptible():
        assert not AgreedStop.requested


def test_restarts_need_a_folder_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dreamer_torchrl.train import folder_for

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ConfigError, match="give run_dir=FOLDER"):
        folder_for(load([]).settings, None)
