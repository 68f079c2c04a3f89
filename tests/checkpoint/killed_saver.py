"""Kill processes with signal 9 while they save, again and again; after each kill, check what is left.

    python -m tests.checkpoint.killed_saver FOLDER random 50
    python -m tests.checkpoint.killed_saver FOLDER each-operation

A process trains a small replay and saves in a loop. When it is dead, the newest checkpoint must hold exactly what a
process that was never killed has at that step, and no step that was reported as saved may be lost. ``random`` kills
at random moments, ``each-operation`` before the first change of the file system during a save, then before the second,
and so on. The children are forked: torch is imported once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, Saved
from dreamer_torchrl.data.replay import Replay
from tests.checkpoint.checkpoint_examples import assert_same, grow, parts, small_replay

CHANGES = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def resume(checkpoints: Checkpoints) -> tuple[Saved | None, Replay]:
    """What a new process finds."""
    replay = small_replay()
    return checkpoints.load(replay), replay


def train(folder: Path, report: int, updates: int, kill_at: int) -> None:
    """Go on from the newest checkpoint; save after each update, and report each step that is saved."""
    checkpoints = Checkpoints(folder)
    saved, replay = resume(checkpoints)
    count_down = [kill_at]

    def kill_before(event: str, arguments: tuple) -> None:
        reads = event == "open" and arguments[1] == "r"
        if event in CHANGES and not reads and threading.current_thread() is not threading.main_thread():
            count_down[0] -= 1
            if count_down[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_at:
        sys.addaudithook(kill_before)
    first = saved.step + 1 if saved else 1
    for step in range(first, first + updates):
        grow(replay, 3)
        checkpoints.save(step, parts(step), replay, wait=True)
        assert checkpoints.failure is None
        if step > first:  # the one before is through, this one is being written while the replay grows on
            os.write(report, (step - 1).to_bytes(4, "big"))
    checkpoints.wait()
    assert checkpoints.failure is None
    os.write(report, step.to_bytes(4, "big"))


class Watch:
    """Start processes, and compare what they leave with a process that is never killed."""

    def __init__(self, folder: Path):
        self.folder, self.reported, self.step, self.twin = folder, 0, 0, small_replay()

    def one_life(self, updates: int, kill_at: int = 0, kill_after: float | None = None) -> bool:
        """Whether the process lived to its end."""
        reader, report = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                train(self.folder, report, updates, kill_at)
            except BaseException as error:
                print(f"The process that trains failed: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        os.close(report)
        if kill_after is not None:
            self.reported = int.from_bytes(os.read(reader, 4), "big") or self.reported  # its first save is through
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        while word := os.read(reader, 4):
            self.reported = int.from_bytes(word, "big")
        os.close(reader)
        assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFEXITED(status)

    def check(self) -> None:
        """Each checkpoint is sound, the newest is all of one instant, and nothing that was reported is lost."""
        checkpoints = Checkpoints(self.folder)
        for name in checkpoints.names():
            checkpoints.read(name, small_replay())
        saved, replay = resume(checkpoints)
        if saved is None:
            assert self.reported == 0
            return
        assert saved.damaged == []
        assert saved.step >= self.reported
        assert saved.parts["loop"] == {"step": saved.step}
        assert (saved.parts["learner"]["weight"] == saved.step).all()
        while self.step < saved.step:
            grow(self.twin, 3)
            self.step += 1
        assert_same(replay, self.twin)


def kill_at_random(folder: Path, kills: int) -> None:
    """Each process goes on with what the killed one left."""
    watch, moments = Watch(folder), random.Random(0)
    for _ in range(kills):
        watch.one_life(10**6, kill_after=moments.uniform(0, 0.2))
        watch.check()
    assert watch.one_life(1)
    watch.check()
    print(f"{kills} kills, {watch.step} steps")


def kill_at_each_operation(folder: Path) -> None:
    """Each time from the same state: the replay has wrapped, and a checkpoint and some files must go."""
    before = folder.with_name("before")
    assert Watch(before).one_life(8)
    kill_at, lived = 0, False
    while not lived:
        kill_at += 1
        shutil.copytree(before, folder)
        watch = Watch(folder)
        lived = watch.one_life(1, kill_at)
        watch.check()
        assert watch.one_life(1)  # the next process goes on, and cleans up
        watch.check()
        left = sorted(path.name for path in folder.iterdir())
        assert left == [f"{watch.step - 1:012d}", f"{watch.step:012d}", "replay"], left
        used = {p.file.name for name in left[:2] for p in Checkpoints(folder).read(name).pieces}
        assert {path.name for path in (folder / "replay").iterdir()} == used
        shutil.rmtree(folder)
    print(f"{kill_at - 1} kills")


def main() -> None:
    torch.set_num_threads(1)
    folder, how = Path(sys.argv[1]), sys.argv[2]
    if how == "random":
        kill_at_random(folder, int(sys.argv[3]))
    else:
        kill_at_each_operation(folder)


if __name__ == "__main__":
    main()
