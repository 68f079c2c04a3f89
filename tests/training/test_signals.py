"""Real signals to real processes: the first lets the work be finished, if it ends in time; the second does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dreamer_torchrl.training.signals import StopSignals

ROOT = Path(__file__).parents[2]
BEGIN = """
import multiprocessing, os, sys, time
from dreamer_torchrl.record.console import Console
from dreamer_torchrl.training.signals import StopSignals
console = Console(1)
"""
SAVING = """
with StopSignals(console.note) as stop:
    print("ready", flush=True)
    while not stop.requested:
        time.sleep(0.01)
    with stop.saving():
        print("saving", flush=True)
        time.sleep(float(sys.argv[1]))
print("saved", flush=True)
sys.exit(stop.exit_code)
"""
FIRST = "finishing this update and saving. A second signal exits at once."


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that is ready for signals."""
    command = [sys.executable, "-c", BEGIN + program, *arguments]
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=variables
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGUSR1, 0), (signal.SIGUSR2, 0)]
)
def test_one_signal_lets_the_work_be_finished(number: signal.Signals, code: int) -> None:
    """Also where the launcher passes on what the whole process group got."""
    process = start(SAVING, "0.2")
    process.send_signal(number)
    time.sleep(0.02)
    process.send_signal(number)
    assert process.communicate(timeout=30) == (f"{number.name}: {FIRST}\nsaving\nsaved\n", "")
    assert process.returncode == code


def test_a_cluster_may_tell_several_times_that_the_time_ends() -> None:
    process = start(SAVING, "1")
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        process.send_signal(number)
        time.sleep(0.4)
    assert process.communicate(timeout=30) == (f"SIGTERM: {FIRST}\nsaving\nsaved\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(second: signal.Signals) -> None:
    process = start(SAVING, "60")
    process.send_signal(signal.SIGTERM)
    assert [process.stdout.readline() for _ in range(2)][1] == "saving\n"
    time.sleep(0.5)
    before = time.monotonic()
    process.send_signal(second)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 128 + second and time.monotonic() - before < 5


@pytest.mark.parametrize(
    ("work", "code", "told"),
    [
        ("", 143, "Ended without saving; the last checkpoint is unchanged."),
        ("with stop.saving(): pass", 0, "saved; not"),
    ],
)
def test_what_takes_too_long_is_left(work: str, code: int, told: str) -> None:
    """Whatever the main thread does, before the last save and after it."""
    program = f"""
with StopSignals(console.note, seconds=0.5) as stop:
    {work}
    print("ready", flush=True)
    time.sleep(60)
"""
    process = start(program)
    process.send_signal(signal.SIGTERM)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (code, "") and told in said


def test_a_signal_in_the_middle_of_a_blocked_print() -> None:
    """The reader is slow (`| less`), the pipe is full, and another line is to be printed."""
    program = """
with StopSignals(console.note) as stop:
    print("ready", flush=True)
    while not stop.requested:
        console.note("x" * 100_000)
sys.exit(stop.exit_code)
"""
    process = start(program)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    said, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (0, "")
    assert f"SIGTERM: {FIRST}" in said


def test_a_forked_child_has_the_handlers_of_before() -> None:
    """It dies of a signal, and its parent does not take that for one of its own."""
    program = """
with StopSignals(console.note) as stop:
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    child.start()
    print("ready", flush=True)
    time.sleep(0.3)
    child.terminate()
    child.join(30)
    time.sleep(0.3)
    print(child.exitcode, stop.requested)
"""
    assert start(program).communicate(timeout=60)[0] == "-15 None\n"


def test_handlers_come_back_and_a_thread_has_none() -> None:
    """Also after an error. In a thread, where Python allows no handler, a training goes on without."""
    said: list[str] = []
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyError), StopSignals(said.append) as stop:
        assert (stop.requested, stop.exit_code) == (None, 0)
        os.kill(os.getpid(), signal.SIGINT)
        while not stop.requested:
            time.sleep(0.01)
        raise KeyError
    assert (stop.requested, stop.exit_code, len(said)) == (signal.SIGINT, 130, 1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before

    def enter() -> None:
        with StopSignals(said.append) as stop:
            said.append(f"entered, {stop.requested}")

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert said[1:] == ["entered, None"]
