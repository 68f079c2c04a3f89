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
from pathlib import Path

import pytest

from dreamer_torchrl.record.console import Console

ROOT = Path(__file__).parents[2]
VALUES = {
    "count/updates": 1_550.0,
    "count/frames": 24_800.0,
    "rate/steps_per_second": 118.24,
    "rate/updates_per_second": 22.5,
    "time/left": 754.0,
    "memory/process_bytes": 1.25e9,
    "best/return": 340.1,
    "train/loss_reconstruction": 1.234,
    "train/loss_actor": -0.0123,
    "train/entropy": 0.5,
}


class Terminal:
    """A pseudo-terminal, and a small emulator of what its screen shows."""

    def __init__(self, columns: int):
        self._main, side = pty.openpty()
        self.stream = os.fdopen(side, "w")
        self.resize(columns)
        self._data = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns: int) -> None:
        """What a user does with the mouse."""
        self.columns = columns
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._main, 65_536)
            except OSError:
                return
            self._data += data

    def finish(self) -> str:
        """All that was written."""
        self.stream.close()
        self._reader.join(5)
        os.close(self._main)
        return self._data.decode()


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
    """However often values come, there is one line, and it ends with the last of them."""
    terminal = Terminal(200)
    console = Console(100_000, terminal.stream)
    for step in range(0, 60_000, 1_000):
        console.write(step, {"episode/return": 100.0, **VALUES})
        time.sleep(0.005)
    console.write(100_000, {"best/return": 7.0, "time/left": 0.0, "memory/process_bytes": 2e6, "count/updates": 9.0})
    console.close()
    written = terminal.finish()
    (line,) = filter(None, screen(written))
    assert line == (
        "100,000/100,000 100%  return 100.0  best 7.0  0 s left  118 steps/s  22.5 updates/s  9 updates  memory 2 MB  "
        "24,800 frames  losses: reconstruction 1.23, actor -0.0123"
    )
    assert written.count("\r\n") == 1


def test_a_terminal_is_redrawn_at_most_five_times_a_second() -> None:
    """Drawing must cost nothing."""
    terminal = Terminal(80)
    console = Console(1_000_000, terminal.stream)
    start = time.monotonic()
    calls = 0
    while time.monotonic() - start < 1:
        console.write(calls, VALUES)
        calls += 1
    written = terminal.finish()
    assert calls > 1_000
    assert 3 <= written.count("\r") <= 6


@pytest.mark.parametrize("columns", [10, 40, 80, 200])
def test_the_line_never_wraps(columns: int) -> None:
    """The last column stays free; what matters most stays longest."""
    terminal = Terminal(columns)
    console = Console(100_000, terminal.stream)
    console.write(12_400, {"episode/return": 212.5, **VALUES})
    console.close()
    (line,) = filter(None, screen(terminal.finish()))
    assert len(line) < columns
    assert line.startswith(" 12,400/100,000 12%  return 212.5"[: columns - 1])
    assert ("losses: reconstruction 1.23, actor -0.0123" in line) == (columns == 200)


def test_the_line_follows_the_width_of_the_terminal() -> None:
    """Also when it shrinks during the run."""
    terminal = Terminal(200)
    console = Console(100_000, terminal.stream)
    console.write(1_000, VALUES)
    terminal.resize(40)
    time.sleep(0.25)
    console.write(2_000, VALUES)
    console.close()
    last = terminal.finish().removesuffix("\r\n").rpartition("\r")[2]
    assert len(last.rstrip()) < 40 and last.lstrip().startswith("2,000/")


def test_notes_and_evaluations_stand_above_the_line() -> None:
    """Each on a line of its own; nothing of the progress line remains in it."""
    terminal = Terminal(100)
    console = Console(10_000, terminal.stream)
    console.note("first")
    console.write(1_000, VALUES)
    console.note("saved")
    console.write(2_000, {"eval/return": 475.25, "eval/return_std": 2.5, "eval/episodes": 20.0})
    console.video(2_000, "eval/video", Path("runs/a/videos/2000.mp4"))
    console.close()
    first, saved, evaluated, video, line, empty = screen(terminal.finish())
    assert (first, saved, empty) == ("first", "saved", "")
    assert evaluated == "step 2,000: evaluation return 475.2 +- 2.5 in 20 episodes"
    assert video == "step 2,000: eval/video in runs/a/videos/2000.mp4"
    assert line.startswith(" 2,000/10,000 20%") and "eval 475.2" in line


def variables() -> dict[str, str]:
    """Those of a process whose standard output is buffered, as it is by default."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | {"PYTHONPATH": str(ROOT)}


def run_in_pipe(program: str, command: str) -> subprocess.CompletedProcess[str]:
    """What comes out of a pipe that a program writes to."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command, "bash", sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        env=variables(),
    )


def test_a_pipe_gets_a_line_per_interval() -> None:
    """No carriage returns; all there is, on one line; the first at once, the last at the end."""
    program = f"""
import time
from dreamer_torchrl.record.console import Console
console = Console(1_000, seconds=0.3)
for step in range(0, 1_000, 10):
    console.write(step, {{"episode/return": 21.0, **{VALUES}}})
    time.sleep(0.01)
console.write(1_000, {{}})
console.close()
"""
    outcome = run_in_pipe(program, '"$@" | cat')
    lines = outcome.stdout.splitlines()
    assert "\r" not in outcome.stdout
    assert 4 <= len(lines) <= 8, lines
    assert lines[0] == (
        "    0/1,000 0%  return 21.0  best 340.1  12 min 34 s left  118 steps/s  22.5 updates/s  1,550 updates  "
        "memory 1.2 GB  24,800 frames  losses: reconstruction 1.23, actor -0.0123"
    )
    assert lines[-1].startswith("1,000/1,000 100%")


def test_lines_come_out_of_a_pipe_at_once() -> None:
    """Not when eight kilobytes are full: a kill right after a line leaves the line."""
    program = """
import os
from dreamer_torchrl.record.console import Console
Console(10).note("ready")
os._exit(0)
"""
    assert run_in_pipe(program, '"$@" | cat').stdout == "ready\n"


def test_the_return_is_the_mean_of_recent_episodes(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the last ten."""
    console = Console(100, seconds=0)
    for value in [1_000.0] * 5 + [1.0, 3.0] * 5:
        console.write(1, {"episode/return": value})
    assert capsys.readouterr().out.splitlines()[-1] == "  1/100 1%  return 2.0"


TALK = """
from dreamer_torchrl.record.console import Console
console = Console(1_000, seconds=0)
for step in range(1_000):
    console.write(step, {})
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
