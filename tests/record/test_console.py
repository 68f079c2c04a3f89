"""What a person sees, in a real terminal and in a real pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dreamer_torchrl.record.console import Console

ROOT = Path(__file__).parents[2]
VALUES = {"count/updates": 1_550.0, "count/frames": 24_800.0, "rate/steps_per_second": 118.24}
VALUES |= {"rate/updates_per_second": 22.5, "time/left": 754.0, "memory/process_bytes": 1.25e9, "best/return": 340.1}
VALUES |= {"train/loss_reconstruction": 1.234, "train/loss_anything": -0.0123, "train/entropy": 0.5}


class Terminal:
    def __init__(self, columns: int):
        self._main, side = pty.openpty()
        self.stream = os.fdopen(side, "w")
        self.resize(columns)

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def finish(self) -> str:
        self.stream.close()
        data = b""
        with suppress(OSError):  # at the end
            while True:
                data += os.read(self._main, 65_536)
        os.close(self._main)
        return data.decode()


def screen(written: str) -> list[str]:
    """Lines that remain on a terminal: a carriage return goes back to the first column, and text overwrites."""
    rows = []
    for text in written.replace("\r\n", "\n").split("\n"):
        row = ""
        for piece in text.split("\r"):
            row = piece + row[len(piece) :]
        rows.append(row.rstrip())
    return rows


def test_a_terminal_shows_one_line_that_changes() -> None:
    """However often values come, there is one line, drawn at most five times a second, and the last of them ends it."""
    terminal = Terminal(200)
    console = Console(100_000, terminal.stream)
    for step in range(0, 60_000, 1_000):
        console.log_metrics({"episode/return": 100.0, **VALUES}, step)
        time.sleep(0.005)
    last = {"best/return": 7.0, "time/left": 0.0, "memory/process_bytes": 2e6, "count/updates": 9.0}
    console.log_metrics(last, 100_000)
    console.close()
    written = terminal.finish()
    (line,) = filter(None, screen(written))
    assert line == (
        "100,000/100,000 100%  return 100.0  best 7.0  0:00:00 left  118 steps/s  22.5 updates/s  9 updates  "
        "memory 2.0 MB  24,800 frames  losses: reconstruction 1.23, anything -0.0123"
    )
    assert written.count("\r\n") == 1 and 2 <= written.count("\r") <= 8


@pytest.mark.parametrize("columns", [10, 40, 200])
def test_the_line_never_wraps(columns: int) -> None:
    """The last column stays free; what matters most stays longest; a terminal that shrinks is noticed."""
    terminal = Terminal(300)
    console = Console(100_000, terminal.stream)
    console.log_metrics(VALUES, 12_000)
    terminal.resize(columns)
    time.sleep(0.25)
    console.log_metrics({"episode/return": 212.5}, 12_400)
    console.close()
    line = terminal.finish().removesuffix("\r\n").rpartition("\r")[2].rstrip()
    assert len(line) < columns
    assert line.startswith(" 12,400/100,000 12%  return 212.5"[: columns - 1])
    assert ("losses: reconstruction 1.23, anything -0.0123" in line) == (columns == 200)


def test_notes_and_evaluations_stand_above_the_line() -> None:
    """Each on a line of its own, whichever thread prints it; nothing of the progress line remains in it."""
    terminal = Terminal(100)
    console = Console(10_000, terminal.stream)
    console.log_metrics({**VALUES, "count/updates": 0.0}, 1_000)
    threads = [threading.Thread(target=console.note, args=(letter * 50,)) for letter in "abcdefgh"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    console.log_metrics({"eval/return": 475.25, "eval/return_std": 2.5, "eval/episodes": 20.0}, 2_000)
    console.log_video_file("eval/video", Path("runs/a/videos/2000.mp4"), 2_000)
    console.close()
    *notes, evaluated, video, line, empty = screen(terminal.finish())
    assert sorted(notes) == [letter * 50 for letter in "abcdefgh"] and empty == ""
    assert evaluated == "step 2,000: evaluation return 475.2 +- 2.5 in 20 episodes"
    assert video == "step 2,000: eval/video in runs/a/videos/2000.mp4"
    assert line.startswith(" 2,000/10,000 20%  NO UPDATE YET") and "eval 475.2" in line


def run_in_pipe(program: str, command: str) -> subprocess.CompletedProcess[str]:
    """What comes out of a pipe that a program writes to, buffered as it is by default."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, "bash", sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=variables | {"PYTHONPATH": str(ROOT)},
    )


def test_a_pipe_gets_a_line_per_interval() -> None:
    """No carriage returns; all there is, on one line, at once: a kill right after a line leaves the line."""
    program = f"""
import os, time
from dreamer_torchrl.record.console import Console
console = Console(1_000, seconds=0.3)
for step in range(0, 1_000, 10):
    for value in (1_000.0, 11.0, 31.0):  # the mean is one of the last ten
        console.log_metrics({{"episode/return": value}}, step)
    console.log_metrics({VALUES}, step)
    time.sleep(0.01)
console.log_metrics({{}}, 1_000)
console.close()
os._exit(0)
"""
    lines = run_in_pipe(program, '"$@" | cat').stdout.splitlines()
    assert not any("\r" in line for line in lines) and 4 <= len(lines) <= 9, lines
    assert lines[0] == "    0/1,000 0%  return 1,000.0"
    assert lines[-1].startswith("1,000/1,000 100%  return 315.7  best 340.1  0:12:34 left  118 steps/s")


TALK = """
from dreamer_torchrl.record.console import Console
console = Console(1_000, seconds=0)
for step in range(1_000):
    console.log_metrics({}, step)
    console.note("x" * 1_000)
console.close()
open(PATH, "w").write("trained")
"""


@pytest.mark.parametrize("command", ['"$@" | head -1', 'exec 1>/dev/full; "$@"'])
def test_a_reader_that_goes_away_does_not_stop_the_training(tmp_path: Path, command: str) -> None:
    """``| head``, a closed window, a full disk behind ``>``: the training ends well, without a word of Python's."""
    path = tmp_path / "end"
    outcome = run_in_pipe(TALK.replace("PATH", repr(str(path))), command)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert path.read_text() == "trained"


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_name_can_be_printed(encoding: str) -> None:
    """Of a folder that the terminal has no letters for, or that is no text at all."""
    program = r"""
from dreamer_torchrl.record.console import Console
Console(10).note("saved in /läufe/\udcff")
"""
    outcome = run_in_pipe(program, f'PYTHONIOENCODING={encoding} "$@"')
    assert outcome.returncode == 0, outcome.stderr
    assert re.fullmatch(r"saved in /l(ä|\\xe4)ufe/\\udcff\n", outcome.stdout)
