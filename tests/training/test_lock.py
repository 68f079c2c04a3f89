"""One run directory, one process: a second one is told who is there, a dead one is in nobody's way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dreamer_torchrl.training.lock import RunLocked, RunNotWritable, run_lock
from tests.checkpoint.checkpoint_examples import read_only

HOLD = """
import os, sys, time
from dreamer_torchrl.training.lock import run_lock
with run_lock(sys.argv[1]):
    if "fork" not in sys.argv or os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def hold(run_dir: Path, *words: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, run_dir, *words], stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


def test_the_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    process, _ = hold(tmp_path)
    owner = (tmp_path / "lock").read_text()
    assert owner.startswith(f"process {process.pid} on {socket.gethostname()}, since 2")
    with pytest.raises(RunLocked) as caught, run_lock(tmp_path):
        pass
    end(process)  # then its lock is taken over; its text is still there
    assert (tmp_path / "lock").read_text() == owner
    with run_lock(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on")
    assert (tmp_path / "lock").read_text() == ""
    assert str(caught.value).startswith(f"{tmp_path} is in use: {owner} trains there.")


def test_a_forked_child_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    process, child = hold(tmp_path, "fork")
    end(process)
    os.kill(int(child), 0)  # it still lives
    with run_lock(tmp_path):
        os.kill(int(child), signal.SIGKILL)


def test_an_owner_that_has_not_signed_yet_is_another_process(tmp_path: Path) -> None:
    with run_lock(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(RunLocked, match="another process trains there"), run_lock(tmp_path):
            pass


def test_a_run_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with run_lock(tmp_path / "new/run"):
        pass
    for run_dir in (tmp_path, tmp_path / "other/run", tmp_path / "new/run/lock"):  # the last one is a file
        with read_only(tmp_path), pytest.raises(RunNotWritable) as caught, run_lock(run_dir):
            pass
        assert str(caught.value).startswith(f"The run directory {run_dir} cannot be written: ")
        assert str(caught.value).endswith("Make it writable, or give another run_dir.")
