"""Sweeps through launchers of clusters: a requeued job and a killed one lose nothing that was saved."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton

from dreamer_torchrl.config import sweep
from dreamer_torchrl.config.compose import own_hydra
from tests.training.training_examples import TINY

SMALL = [*TINY, "eval.episodes=1", "eval.num_envs=1", "env=cartpole", "seed=0,1"]
COMMAND = (sys.executable, "-m", "dreamer_torchrl.train", "--multirun")


def test_every_launcher_is_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra's state is put back after each configuration, and a plugin is imported once."""
    monkeypatch.setattr(Singleton, "_instances", {})
    for _ in range(2):
        with own_hydra() as loader:
            found = set(loader.get_group_options("hydra/launcher"))
        assert {"joblib", "submitit_local", "submitit_slurm"} <= found
        assert ("ray" in found) == (find_spec("hydra_plugins.hydra_ray_launcher") is not None)
    assert Plugins in Singleton._instances


class Requeued(BaseException):
    pass


def test_a_launcher_requeues_after_the_run_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """What submitit does at its signal comes when the training process has ended."""
    child = """
import os, signal, time
signal.signal(signal.SIGUSR2, lambda *_: (time.sleep(0.5), exit(0)))
os.kill(os.getppid(), signal.SIGUSR2)
time.sleep(60)
"""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def start(_: object, **options: object) -> subprocess.Popen[bytes]:
        started.append(popen([sys.executable, "-c", child], **options))
        return started[0]

    def requeue(*_: object) -> None:
        raise Requeued(started[0].returncode)

    monkeypatch.setattr(subprocess, "Popen", start)
    before = signal.signal(signal.SIGUSR2, requeue)
    try:
        with pytest.raises(Requeued) as requeued:
            sweep.train([])
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert requeued.value.args == (0,)


def wait_for(what: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.1)


def job(folder: Path, number: int) -> tuple[int, Path]:
    """Process and output of a job of submitit, in the order of starts."""
    (log,) = sorted((folder / ".submitit").glob("*/*_0_log.out"))[number : number + 1]
    controller = log.parent.name
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", controller], capture_output=True, text=True)
    return int(found.stdout or 0), log


@pytest.mark.slow
def test_a_job_of_submitit_is_requeued_killed_and_continued(tmp_path: Path) -> None:
    """SIGUSR2 is what submitit lets Slurm send before a time limit, and SIGKILL is what a lost machine is."""
    arguments = [*SMALL[:-1], "seed=range(3,4)", "hydra/launcher=submitit_local", f"run_dir={tmp_path}/sweep"]
    folder, metrics = tmp_path / "sweep", tmp_path / "sweep/seed=3/metrics.jsonl"
    process = subprocess.Popen([*COMMAND, *arguments, "total_steps=1e6"], stderr=subprocess.PIPE, text=True)
    wait_for(lambda: metrics.exists() and metrics.stat().st_size, process)
    number, log = job(folder, 0)
    os.kill(number, signal.SIGUSR2)
    wait_for(lambda: "Resumed at step" in log.read_text(), process)
    told = log.read_text()
    saved = re.findall(r"Stopped and saved at step ([\d,]+)", told)
    assert re.findall(r"Resumed at step ([\d,]+)", told) == saved
    order = [told.index(text) for text in ("SIGUSR2: finishing", "Stopped and saved", "Resumed at step")]
    assert order == sorted(order) and "Requeued job" in told

    number, _ = job(folder, 0)
    os.kill(number, signal.SIGKILL)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1 and "UncompletedJobError" in error
    wait_for(lambda: len(re.findall("Stopped and saved", log.read_text())) == 2)  # its training has got SIGTERM
    steps = int(re.findall(r"saved at step ([\d,]+)", log.read_text())[-1].replace(",", ""))
    again = subprocess.run([*COMMAND, *arguments, f"total_steps={steps + 20}"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    told = "".join(path.read_text() for path in folder.glob(".submitit/*/*_0_log.out"))
    assert f"Resumed at step {steps:,}" in told and f"finished, step {steps + 20:,}" in told


@pytest.mark.slow
def test_ray_trains_the_runs_of_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    arguments = [*SMALL, "total_steps=20", "hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2"]
    arguments += ["+hydra.launcher.ray.init.include_dashboard=false", f"run_dir={tmp_path}/sweep"]
    outcome = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    assert all(f"seed={seed}: finished, step 20" in outcome.stdout for seed in (0, 1))
