"""What happens to checkpoints when the machine fails: killed processes, full and read-only disks, readers meanwhile."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints, SaveFailed
from dreamer_torchrl.data.replay import Replay
from tests.checkpoint.checkpoint_examples import assert_same, grow, mounted, read_only, small_replay, steps

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("how", "least"),
    [
        pytest.param(("random", "3"), 3, id="random"),
        pytest.param(("each-operation",), 30, id="each", marks=pytest.mark.slow),
    ],
)
def test_killed_savers_leave_what_was_saved(how: tuple[str, ...], least: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.checkpoint.killed_saver", str(tmp_path / "run"), *how]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert int(result.stdout.splitlines()[-1].split()[0]) >= least


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    with mounted(folder, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        yield


@contextmanager
def small_files(folder: Path) -> Iterator[None]:
    """No file may grow beyond 500 kB, which needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("limit", "number"), [(small_disk, errno.ENOSPC), (small_files, errno.EFBIG)], ids=["full_disk", "small_files"]
)
@pytest.mark.parametrize("large", ["a part", "the replay"])
def test_a_disk_that_fills_up(limit: type, number: int, large: str, tmp_path: Path) -> None:
    """Training goes on, the warning has the numbers, nothing half done takes the space, a later save has it all."""
    with limit(tmp_path):
        checkpoints, replay = Checkpoints(tmp_path / "checkpoints"), _replay(torch.zeros(8))
        checkpoints.save(1, {"loop": {"step": 1}}, replay)
        checkpoints.wait()
        before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        size = {"a part": (1_500_000, 8), "the replay": (8, 40_000)}[large]
        for step in (2, 3):
            replay = replay if step == 3 else _replay(torch.zeros(size[1]))
            assert checkpoints.save(step, {"learner": torch.zeros(size[0], dtype=torch.uint8)}, replay)
            checkpoints.wait()
            failure = checkpoints.failure
            assert isinstance(failure, SaveFailed) and failure.errno == number and failure.needed > 1_000_000
            assert number == errno.EFBIG or 500_000 < failure.free < 1_050_000
            for word in (f"step {step} ", f"{failure.needed:,} bytes", f"{failure.free:,} are free"):
                assert word in str(failure)
            assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
        assert Checkpoints(tmp_path / "checkpoints").load().parts == {"loop": {"step": 1}}

        replay = small_replay()
        grow(replay, 9)
        checkpoints.save(4, {"loop": {"step": 4}}, replay)
        checkpoints.wait()
        assert checkpoints.failure is None
        again = small_replay()
        Checkpoints(tmp_path / "checkpoints").load(again)
        assert_same(again, replay)


def test_what_a_failed_save_missed_comes_with_the_next_one(tmp_path: Path) -> None:
    checkpoints, replay, again = Checkpoints(tmp_path), small_replay(), small_replay()
    for step, fails in enumerate([False, True, True, False, True, False]):
        grow(replay, 6)
        part = torch.zeros(600_000 if fails else 6, dtype=torch.uint8)
        with small_files(tmp_path):
            checkpoints.save(step, {"learner": part}, replay)
            checkpoints.wait()
        assert (checkpoints.failure is not None) == fails
        if not fails:
            Checkpoints(tmp_path).load(again)
            assert_same(again, replay)


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    checkpoints, replay = Checkpoints(tmp_path / "checkpoints"), small_replay()
    grow(replay, 6)
    checkpoints.save(1, {}, replay)
    checkpoints.wait()
    grow(replay, 6)
    with read_only(tmp_path / "checkpoints"):
        checkpoints.save(2, {}, replay)
        checkpoints.wait()
        assert checkpoints.failure.errno in (errno.EROFS, errno.EACCES)
        assert Checkpoints(tmp_path / "checkpoints").load().step == 1  # loading needs no rights
    checkpoints.save(3, {}, replay)
    checkpoints.wait()
    assert checkpoints.failure is None
    again = small_replay()
    Checkpoints(tmp_path / "checkpoints").load(again)
    assert_same(again, replay)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    checkpoints.save(1, {}, small_replay())
    checkpoints.wait()
    assert checkpoints.failure.errno == errno.ENOTDIR


def test_a_save_during_a_save_is_left_out_or_waits(tmp_path: Path) -> None:
    checkpoints, replay = Checkpoints(tmp_path), small_replay()
    large = {"learner": torch.zeros(20_000_000)}
    assert checkpoints.save(1, large, replay)
    assert not checkpoints.save(2, {}, replay)
    assert checkpoints.failure is None
    assert checkpoints.save(3, {}, replay, wait=True)
    checkpoints.wait()
    assert checkpoints.names() == ["000000000001", "000000000003"]


def test_another_process_may_load_while_this_one_saves(tmp_path: Path) -> None:
    """It finds a sound checkpoint each time, though the one it reads may be removed under its hands."""
    writer, replay = Checkpoints(tmp_path, keep=1), small_replay()
    grow(replay, 9)
    writer.save(0, {}, replay)
    writer.wait()
    step = 0
    while step < 12:
        step += writer.save(step + 1, {}, replay)
        grow(replay, 1)
        saved = Checkpoints(tmp_path, keep=1).load()
        assert saved.damaged == []
        assert saved.step >= step - 1
    writer.wait()


def _replay(pixels: torch.Tensor) -> Replay:
    """A few steps with as much in each of them as is given."""
    replay = Replay(capacity=40, streams=2, batch=2, length=4)
    replay.extend(steps(0, 10).set("pixels", pixels.expand(2, 10, -1)))
    return replay
