"""`--multirun`: which runs it means, that all are checked first, and real sweeps that are stopped and continued."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dreamer_torchrl import train
from dreamer_torchrl.config import sweep
from dreamer_torchrl.config.compose import load, saved_settings
from tests.training.training_examples import TINY

COMMAND = (sys.executable, "-m", "dreamer_torchrl.train", "--multirun")
SMALL = [*TINY, "eval.episodes=1", "eval.num_envs=1", "env=cartpole"]


def test_every_combination_is_a_run() -> None:
    """Which are those of Hydra's basic sweeper; its settings are no part of a run."""
    found = sweep.members(["seed=range(2)", "env=glob(*cartpole)", "hydra/launcher=basic", "size=choice(nano,size1m)"])
    assert found == [[f"seed={seed}", "env=cartpole", f"size={size}"] for seed in (0, 1) for size in ("nano", "size1m")]


WRONG = [
    ("seed=0,1,x", "seed=x is impossible: it should be a valid integer"),
    ("env=cartpole,pendlum", "There is no env 'pendlum'. Did you mean 'pendulum'?"),
    ("sede=0,1", "There is no setting 'sede'. Did you mean 'seed'?"),
    ("learner.horizon=interval(10,20)", "is for another hydra/sweeper: list values"),
    ("env=glob(pendlum*)", "asks for no run at all"),
    ("seed=0,1 run_dir=runs/${seed}", "a sweep has one folder"),
    ("seed=0,1 run_dir=", "run_dir= names no folder"),
    ("seed=0,1 run_dir=file", "run_dir=file is a file"),
    ("seed=0,1 run_dir=run", "run_dir=run is a run by itself"),
    ("seed=0,1 --config-name=mine", "There is no option --config-name"),
]


@pytest.mark.parametrize(("overrides", "told"), WRONG, ids=[one for one, _ in WRONG])
def test_a_mistake_in_one_run_ends_all_before_the_first(
    overrides: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line, and nothing made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    load(["env=pendulum"]).save(tmp_path / "run")
    assert train.main(["-m", *overrides.split()]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert told in said.err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "run"}


def test_each_value_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not each combination: of 10,000 runs, the values are seen in 199."""
    checked: list[list[str]] = []
    monkeypatch.setattr(sweep, "load", checked.append)
    _, found = sweep.check([f"seed=range({100})", f"total_steps={','.join(map(str, range(1, 101)))}"])
    assert (len(found), len(checked)) == (10_000, 199)
    assert {one for run in checked for one in run} == {one for run in found for one in run}


def test_the_configurations_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["-m", "--cfg", "seed=4,5", "env=pendulum"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert documents == [load(["env=pendulum", f"seed={seed}"]).values for seed in (4, 5)]


@pytest.mark.parametrize(
    ("steps", "lines", "overrides", "finished"),
    [
        ((), "", "total_steps=60", False),
        ((40,), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60", False),
        ((40, 60), '{"step": 60, "eval/return": 9.0}\n', "total_steps=60", True),
        ((40, 60), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60", False),
        ((60,), "", "total_steps=60 eval.every=0", True),
        ((40,), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60 eval.stop_at=9", True),
        ((20,), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60 eval.stop_at=9", False),
        ((40,), '{"step": 40, "eval/return": null}\n', "total_steps=60 eval.stop_at=9", False),
    ],
)
def test_when_a_run_is_finished(
    steps: tuple[int, ...], lines: str, overrides: str, finished: bool, tmp_path: Path
) -> None:
    for step in steps:
        (tmp_path / f"checkpoints/{step:012d}").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text(lines)
    ended, _, told = sweep.state_of(tmp_path, load(["experiment=laptop", *overrides.split()]).settings)
    assert ended == finished
    assert told.startswith("finished, step " if finished else "not finished, step " if steps else "not started")


def typed(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_a_sweep_is_stopped_and_the_same_command_continues_it(tmp_path: Path) -> None:
    """Ctrl-C comes while the first run trains: it saves itself, and the other one does not begin."""
    endless = [*SMALL, "seed=0,1", "total_steps=1e6"]
    process = subprocess.Popen([*COMMAND, *endless], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    (folder,) = re.findall(r"^Sweep of 2 runs in run_dir=(runs/cartpole-v1-\d{8}-\d{6})\n", process.stdout.readline())
    metrics, deadline = tmp_path / folder / "seed=0/metrics.jsonl", time.monotonic() + 300
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "SIGINT" in text and "seed=1" not in text.partition("SIGINT")[2].partition("Continue with")[0]
    assert f"\n{folder}/seed=0: not finished, step " in text
    command = text.rpartition("\nContinue with: python -m dreamer_torchrl.train --multirun ")[2].splitlines()[0]
    assert shlex.split(command) == [*endless, f"run_dir={folder}"]

    done = int(re.findall(r"not finished, step ([\d,]+)", text)[0].replace(",", ""))
    again = [*SMALL, "seed=0,1", f"total_steps={done + 20}", f"run_dir={folder}"]
    with train.run_lock(tmp_path / folder / "seed=1"):  # a run that fails does not keep the others
        second = typed(tmp_path, *again)
    assert second.returncode == 1
    assert f"Resumed at step {done:,}" in second.stdout
    assert f"{folder}/seed=0: finished, step {done + 20:,}, eval " in second.stdout
    assert f"{folder}/seed=1: failed (exit code 1), not started" in second.stdout
    assert "is in use" in second.stderr and "Traceback" not in second.stderr
    third = typed(tmp_path, *again)
    assert third.returncode == 0, third.stderr
    assert f"{folder}/seed=0: finished already" in third.stdout
    assert f"{folder}/seed=1: finished, step {done + 20:,}, eval " in third.stdout
    assert saved_settings(tmp_path / folder / "seed=1").seed == 1
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


@pytest.mark.slow
def test_another_launcher_trains_the_same_runs(tmp_path: Path) -> None:
    """Two at a time, with an environment's short name, null and an argument in the overrides."""
    small = [*SMALL[:-1], "env=lunarlander,cartpole", "env.arguments.render_mode=null", "total_steps=20"]
    outcome = typed(tmp_path, *small, "hydra/launcher=joblib", "run_dir=a sweep")
    assert outcome.returncode == 0, outcome.stderr
    names = {path.name for path in (tmp_path / "a sweep").iterdir() if path.is_dir()}
    assert names == {"env=cartpole", "env=lunarlander"}
    assert all(f"a sweep/{name}: finished, step 20" in outcome.stdout for name in names)


def test_null_and_atari_games_mean_what_they_mean_for_one_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hydra itself knows neither; each run is trained by its own command."""
    commands: list[list[str]] = []
    monkeypatch.setattr(sweep, "train", lambda overrides: (commands.append(list(overrides)), (0, None))[1])
    monkeypatch.setattr(sys, "argv", ["train"])
    assert sweep.run(["experiment=null,official", "env=pong", "logger=null"], tmp_path) == 0
    settings = [load(command).settings for command in commands]
    assert [one.env.options["game"] for one in settings] == ["pong", "pong"]
    assert [one.replay.length for one in settings] == [32, 64]
    assert [Path(one.run_dir).name for one in settings] == ["experiment=laptop", "experiment=official"]
