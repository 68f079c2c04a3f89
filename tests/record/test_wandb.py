"""W&B: real runs in processes of their own, with their own home and without the variables of the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.record.wandb_examples import ROOT, environment, offline_folders, records, rows

SERVER = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
from dreamer_torchrl.record.metrics import Metrics
from dreamer_torchrl.record.wandb import WandbThread
for line in sys.stdin:
    program, home, variables = json.loads(line)
    if (child := os.fork()) == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
signal.alarm(300)
os.chdir(home)
os.environ.clear()
os.environ.update(variables)
for number in (1, 2):
    os.dup2(os.open(f"printed-{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
run_dir = Path("run")
run_dir.mkdir(exist_ok=True)
(run_dir / "config.yaml").write_text("seed: 0")
def core():
    while True:  # until it has started
        command = ["ps", "-ww", "-A", "-o", "pid=,ppid=,args="]  # -ww: a long path is not cut at the terminal's width
        for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines():
            pid, parent, program = line.split()[:3]
            if (parent, Path(program).name) == (str(os.getpid()), "wandb-core"):
                return int(pid)
        time.sleep(0.05)
exec(program)
"""

Run = Callable[..., list[str]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Run a program; the lines that it prints. It must end well, and say nothing on the error stream unless ``noisy``.

    Each is a process of its own, forked from one that has imported torch, which takes seconds.
    """
    command = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run_program(home: Path, program: str, noisy: bool = False, **variables: str) -> list[str]:
        print(json.dumps([program, str(home), environment(home, **variables)]), file=server.stdin, flush=True)
        code = server.stdout.readline()
        printed, errors = ((home / f"printed-{number}").read_text() for number in (1, 2))
        assert code == "0\n" and (noisy or not errors), errors
        return printed.splitlines()

    yield run_program
    server.communicate()


def log_of(folder: Path) -> bytes:
    (path,) = folder.glob("*.wandb")
    return path.read_bytes()


def test_an_offline_run_holds_what_it_was_given_and_nothing_else(run: Run, tmp_path: Path) -> None:
    """Configuration, scalars, video and the newest best agent; no package list, code, command line or statistics.

    One row for each step: the episodes that ended at one are averaged, and what comes again is left out.
    """
    (tmp_path / "eval.mp4").write_bytes(b"a film" * 1000)
    program = """
from torch import nn
place = {"project": "a-project", "name": "a-name"}
run = WandbThread(run_dir, "offline", place, {"env": {"name": "CartPole"}}, artifact=True, hours=lambda: 0.5)
try:
    with Metrics([run]) as metrics:
        for step in (10, 10, 20, 30, 20, 30, 40):
            metrics.write(step, {"episode/return": step + 1.0, "train/loss_actor": float("nan")})
            metrics.write(step, {"episode/return": step - 2.0})
            metrics.best(step, step, nn.Linear(2, 3))
        metrics.video(50, "eval/video", Path("eval.mp4"))
        raise MemoryError
except MemoryError:
    print("failed")
"""
    told, failed = run(tmp_path, program)
    (folder,) = offline_folders(tmp_path / "run")
    assert (told, failed) == (f"W&B: to upload this run, use: wandb sync {folder.relative_to(tmp_path)}", "failed")
    log = log_of(folder)
    for word in (b"a-project", b"a-name", b"CartPole", b"eval/video"):
        assert word in log
    for word in (b"tensordict", b"CPython", sys.executable.encode(), str(ROOT).encode()):
        assert word not in log, word
    logged = [
        (row["_step"], row["episode/return"], row["time/hours"]) for row in rows(folder) if "eval/video.path" not in row
    ]
    assert logged == [(step, step - 0.5, 0.5) for step in (10, 20, 30, 40)]
    (film,) = (path for path in (folder / "files").rglob("*.mp4"))
    assert film.read_bytes() == (tmp_path / "eval.mp4").read_bytes()
    (artifact,) = records(folder, "artifact")
    assert json.loads(artifact["metadata"]) == {"step": 40, "return": 40} and "best" in artifact["aliases"]
    assert {entry["path"] for entry in artifact["manifest"]["contents"]} == {"weights.npz", "config.yaml"}
    assert len(list((tmp_path / "run/wandb/best").iterdir())) == 2
    assert records(folder, "exit")[0]["exit_code"] == 1


def test_a_resumed_run_has_the_same_id(run: Run, tmp_path: Path) -> None:
    program = "run = WandbThread(run_dir, 'offline')\nrun.log_metrics({'a': 1.0}, STEP)\nrun.close()"
    run(tmp_path, program.replace("STEP", "1"))
    (line,) = run(tmp_path, program.replace("STEP", "2"))
    folders = offline_folders(tmp_path / "run")
    ids = {records(folder, "run")[0]["run_id"] for folder in folders}
    assert ids == {(tmp_path / "run/wandb/run_id").read_text().strip()}
    assert line.endswith(f"wandb sync {' '.join(str(folder.relative_to(tmp_path)) for folder in folders)}")


ONLINE = """
start = time.perf_counter()
run = WandbThread(run_dir, "online", {"project": "a-project"}, {"seed": 0})
run.log_metrics({"episode/return": 1.0}, 1)
print(time.perf_counter() - start)
run.close()
"""


def assert_fell_back(run: Run, home: Path, reason: str, **variables: str) -> None:
    """The start does not wait; the run is there, offline; a line says why, the last one how to upload it."""
    waited, why, how = run(home, ONLINE, **variables)
    assert reason in why and why.endswith("; this run is written offline"), why
    assert float(waited) < 2
    (folder,) = offline_folders(home / "run")
    assert how.endswith(f"wandb sync {folder.relative_to(home)}")
    assert b"episode/return" in log_of(folder)


def test_online_without_a_key_becomes_offline(run: Run, tmp_path: Path) -> None:
    assert_fell_back(run, tmp_path, "there is no API key (set WANDB_API_KEY or run: wandb login)")


@pytest.mark.slow
def test_online_without_a_server_becomes_offline(run: Run, tmp_path: Path) -> None:
    """After the time that W&B is given to begin."""
    key = {"WANDB_API_KEY": "a" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    assert_fell_back(run, tmp_path, "connection refused", **key)


def test_training_outlives_wandb(run: Run, tmp_path: Path) -> None:
    """Its process is killed: one warning, then silence, and the run ends as it should."""
    program = """
run = WandbThread(run_dir, "offline")
run.log_metrics({"episode/return": 1.0}, 0)
os.kill(core(), signal.SIGKILL)
for step in range(20):
    run.log_metrics({"episode/return": 1.0}, step)
    time.sleep(0.05)
run.close()
print("trained")
"""
    lines = run(tmp_path, program, noisy=True)
    assert lines[0].startswith("warning: W&B failed (") and lines[0].endswith("; training goes on without it")
    assert [line for line in lines if "warning" in line] == lines[:1]
    assert lines[-1] == "trained"


def test_writing_never_waits(run: Run, tmp_path: Path) -> None:
    """While W&B's process is frozen, 30,000 records take no time, and one line says that some are left out."""
    program = """
run = WandbThread(run_dir, "offline")
pid = core()
time.sleep(1)
os.kill(pid, signal.SIGSTOP)
values = {f"train/{number}": float(number) for number in range(10)}
start = time.perf_counter()
for step in range(30_000):
    run.log_metrics(values, step)
print(time.perf_counter() - start)
os.kill(pid, signal.SIGCONT)
run.close()
"""
    warning, seconds, command = run(tmp_path, program)
    assert warning.startswith("warning: W&B does not keep up")
    assert float(seconds) < 10, "30,000 calls"
    assert "wandb sync" in command


BROKEN = [
    ("(run_dir / 'wandb').write_text('in the way')", "offline", {}, "Error"),
    ("sys.modules['wandb'] = None", "online", {}, "ModuleNotFoundError"),
]


@pytest.mark.parametrize(("trouble", "mode", "variables", "told"), BROKEN, ids=["folder", "missing"])
def test_whatever_wandb_raises_training_goes_on(
    run: Run, tmp_path: Path, trouble: str, mode: str, variables: dict[str, str], told: str
) -> None:
    """A file stands where its folder should go, a setting is refused, wandb or a part of it is not there."""
    program = f"{trouble}\nrun = WandbThread(run_dir, {mode!r})\nrun.log_metrics({{'a': 1.0}}, 1)\nrun.close()"
    warning = run(tmp_path, program, **variables)[-1]
    assert warning.startswith("warning: W&B failed (") and told in warning
    assert warning.endswith("; training goes on without it")
