"""SIGTERM and Ctrl-C are wishes; a second Ctrl-C is an order. Real signals to real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreamer_torchrl.training.signals import StopSignals

PROGRAM = """
import sys, time
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.training.signals import StopSignals
with StopSignals(Console(1).note) as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(float(sys.argv[1]))
print("saved", flush=True)
sys.exit(stop.exit_code)
"""
TALKATIVE = """
import sys
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.training.signals import StopSignals
console = Console(1)
with StopSignals(console.note) as stop:
    print("ready", file=sys.stderr, flush=True)
    while not stop.requested:
        console.note("x" * int(sys.argv[1]))
sys.exit(stop.exit_code)
"""


def start(saving: float) -> subprocess.Popen[str]:
    """A process that waits for a signal, and saves for so many seconds."""
    command = [sys.executable, "-c", PROGRAM, str(saving)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_one_signal_lets_the_work_be_finished(number: signal.Signals, code: int) -> None:
    process = start(saving=0)
    process.send_signal(number)
    said = process.communicate(timeout=30)[0]
    assert said == f"{number.name}: finishing this update and saving. Ctrl-C exits at once.\nsaving\nsaved\n"
    assert process.returncode == code


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_ctrl_c_while_saving_exits_at_once(first: signal.Signals) -> None:
    process = start(saving=60)
    process.send_signal(first)
    assert [process.stdout.readline() for _ in range(2)][1] == "saving\n"
    before = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - before < 10
    assert process.stdout.read() == ""
    process.stdout.close()


def test_further_requests_to_end_change_nothing() -> None:
    """Batch systems send SIGTERM more than once."""
    process = start(saving=0.5)
    process.send_signal(signal.SIGINT)
    assert [process.stdout.readline() for _ in range(2)][1] == "saving\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 130  # it was Ctrl-C that ended it


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("length", [50, 5000, 100_000])
def test_a_signal_in_the_middle_of_a_blocked_print(length: int, unbuffered: bool) -> None:
    """The reader is slow (`| less`), the pipe is full, and the handler itself wants to print."""
    command = [sys.executable, *["-u"] * unbuffered, "-c", TALKATIVE, str(length)]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert "SIGTERM: finishing this update and saving." in said


def test_handlers_come_back() -> None:
    """Also after an error."""
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), StopSignals(said.append) as stop:
        assert (stop.requested, stop.exit_code) == (None, 0)
        os.kill(os.getpid(), signal.SIGINT)
        raise KeyError
    assert (stop.requested, stop.exit_code, len(said)) == (signal.SIGINT, 130, 1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_before_anything_has_begun(tmp_path: Path) -> None:
    """From the first line on, while torch is still loading: nothing is saved, and the run can be started again."""
    words = ["run_dir=run", "experiment=null", "threads=1", "total_steps=500", "eval.every=0"]
    command = [sys.executable, "-m", "dreamer_torchrl.train", *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().startswith("dreamer_torchrl ")
        process.send_signal(signal.SIGTERM)
        output = process.stdout.read()
    assert process.returncode == 0
    assert "Stopped before the first step. Continue with: python -m dreamer_torchrl.train run_dir=run" in output
    assert (tmp_path / "run" / "config.yaml").is_file() and not list((tmp_path / "run").glob("checkpoints/0*"))
