"""`--multirun`: which runs it means, that all are checked first, and real sweeps that are stopped and continued."""

from __future__ import annotations

import os
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
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.config.words import combinations
from tests.training.training_examples import TINY

COMMAND = (sys.executable, "-m", "dreamer_torchrl.train")
SMALL = [word for word in TINY if not word.startswith("experiment=")]
ENVIRONMENTS = {"env": ("acrobot", "cartpole", "pendulum")}

SWEEPS = [
    ("seed=0,1", ["seed=0", "seed=1"]),
    ("seed=range(3)", ["seed=0", "seed=1", "seed=2"]),
    ("seed=range(1,6,2)", ["seed=1", "seed=3", "seed=5"]),
    ("size=choice(nano,size1m)", ["size=nano", "size=size1m"]),
    ("env=glob(*)", ["env=acrobot", "env=cartpole", "env=pendulum"]),
    ("env=glob(*,exclude=a*)", ["env=cartpole", "env=pendulum"]),
    ("learner.betas=[0.9,0.99],[0.8,0.9]", ["learner.betas=0.9,0.99", "learner.betas=0.8,0.9"]),
    ("env.id='a, b',c env=gym", ["env.id=a,-b", "env.id=c"]),
    ("seed=1,1,2", ["seed=1", "seed=2"]),
    ("seed=3,4 seed=5", ["run"]),
    ("+seed=3,4", ["seed=3", "seed=4"]),
    ("seed=1", ["run"]),
]


@pytest.mark.parametrize(("words", "names"), SWEEPS, ids=[words for words, _ in SWEEPS])
def test_what_words_mean(words: str, names: list[str]) -> None:
    """As in Hydra's own sweeps."""
    typed = re.findall(r"(?:'[^']*'|\S)+", words)
    assert [one.name for one in combinations(typed, ENVIRONMENTS)] == names


def test_every_combination_is_a_run_and_names_do_not_depend_on_the_order_of_words() -> None:
    words = ["seed=0,1", "device=cpu", "env=cartpole,pendulum"]
    found = combinations(words, {})
    assert [one.words for one in found] == [
        [f"seed={seed}", "device=cpu", f"env={env}"] for seed in (0, 1) for env in ("cartpole", "pendulum")
    ]
    assert {one.name for one in found} == {one.name for one in combinations(words[::-1], {})}
    assert found[0].name == "env=cartpole,seed=0"


def test_names_fit_a_folder() -> None:
    """However much is varied; two that would be the same are refused."""
    words = [f"learner.{name}_scale=0.25,0.5" for name in ("actor", "value", "reward", "continue", "dynamics", "slow")]
    names = [one.name for one in combinations(words, {})]
    assert len(set(names)) == 64
    assert max(len(name) for name in names) <= 150
    with pytest.raises(ConfigError, match=r"would be called env\.id=a-b"):
        combinations(["env.id='a b','a  b'"], {})


WRONG = [
    ("seed=0,1,x", "seed='x' should be a whole number. (in the run seed=x)"),
    ("env=cartpole,pendlum", "There is no env 'pendlum'. Did you mean 'pendulum'?"),
    ("sede=0,1", "There is no setting 'sede'. Did you mean 'seed'?"),
    ("learner.horizon=interval(10,20)", "list them, as in learner.horizon=0.1,0.2"),
    ("env=glob(pendlum*)", "stands for no value at all. Did you mean 'pendulum'?"),
    ("seed=glob(*)", "only env, size, experiment, logger have names"),
    ("seed=range(0)", "stands for no value at all."),
    ("seed=0,1 run_dir=runs/${seed}", "a sweep has one folder"),
    ("seed=0,1 --config-name=mine", "there is one configuration"),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[words for words, _ in WRONG])
@pytest.mark.parametrize("option", ["-m", "--multirun"])
def test_a_mistake_in_one_run_ends_all_before_the_first(
    option: str,
    words: str,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one line, and nothing made."""
    monkeypatch.chdir(tmp_path)
    assert train.main([option, *words.split()]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert told in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_late_mistake_is_found_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each value is tried before each combination: the 10,000th run of a sweep is wrong, and few are checked."""
    found = combinations(
        [f"seed={','.join(map(str, range(100)))}", f"size={','.join(f'a{n}' for n in range(100))}"], {}
    )
    order = sweep.in_telling_order(found)
    assert sorted(one.name for one in order) == sorted(one.name for one in found)
    assert order[198].words == ["seed=99", "size=a0"]
    assert {word for one in order[:199] for word in one.words} == {word for one in found for word in one.words}


def test_a_folder_that_cannot_hold_a_sweep(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="is a file"):
        sweep.members(["seed=0,1", f"run_dir={tmp_path / 'file'}"])
    load(["env=pendulum"]).save(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a run by itself"):
        sweep.members(["seed=0,1", f"run_dir={tmp_path / 'run'}"])
    load(["env=pendulum", "seed=1"]).save(tmp_path / "sweep" / "seed=0")
    with pytest.raises(ConfigError, match="is a run with seed=1, and now seed=0 is asked for"):
        sweep.members(["env=pendulum", "seed=0,1", f"run_dir={tmp_path / 'sweep'}"])


def test_the_configurations_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """One document for each run, none made."""
    assert train.main(["-m", "--cfg", "seed=4,5", "env=pendulum"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert documents == [load(["env=pendulum", f"seed={seed}"]).values for seed in (4, 5)]


def test_a_word_for_several_runs_needs_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["seed=1,2"]) == 2
    assert "'seed=1,2' asks for several runs: add --multirun" in capsys.readouterr().err


def typed(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A sweep as a user types it, to its end."""
    return subprocess.run([*COMMAND, *words], cwd=cwd, capture_output=True, text=True, timeout=500)


def summary(printed: str) -> list[str]:
    """The lines at the end about each run."""
    return re.findall(r"^  (\S+ +\S.*)$", printed[printed.rindex("Sweep of") :], re.MULTILINE)


def test_ctrl_c_stops_run_and_sweep_and_the_same_words_continue(tmp_path: Path) -> None:
    """The signal comes while the first run trains: it saves itself; then all is done, then nothing more."""
    words = ["--multirun", *SMALL, "env=cartpole", "seed=0,1", "eval.episodes=1", "eval.num_envs=1", "run_dir=a sweep"]
    endless = [word for word in words if not word.startswith("total_steps=")] + ["total_steps=1e6"]
    with (tmp_path / "printed").open("w+") as printed:
        process = subprocess.Popen([*COMMAND, *endless], cwd=tmp_path, stdout=printed, stderr=subprocess.STDOUT)
        metrics = tmp_path / "a sweep/seed=0/metrics.jsonl"
        deadline = time.monotonic() + 300
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=300) == 130
        printed.seek(0)
        text = printed.read()
    assert "SIGINT: finishing this update and saving." in text
    stopped, waiting = summary(text)
    assert re.fullmatch(r"seed=0  stopped, step [\d,]+, \d+ s", stopped)
    assert waiting == "seed=1  not started"
    command = re.search(r"^Continue with: python (-m dreamer_torchrl.train --multirun .*)$", text, re.MULTILINE)[1]
    assert shlex.split(command)[3:] == [*endless[1:-2], "total_steps=1e6", "run_dir=a sweep"]

    done = int(re.search(r"step ([\d,]+)", stopped)[1].replace(",", ""))
    total = f"total_steps={done + 20}"
    again = [word for word in words if not word.startswith("total_steps=")] + [total, "eval.every=10"]
    second = typed(tmp_path, *again)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"Resumed at step {done:,}" in second.stdout
    assert [line.partition(", eval")[0] for line in summary(second.stdout)] == [
        f"seed=0  finished, step {done + 20:,}",
        f"seed=1  finished, step {done + 20:,}",
    ]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    third = typed(tmp_path, *again)
    assert third.returncode == 0
    assert "[1/2] seed=0: finished already" in third.stdout and "[2/2] seed=1: finished already" in third.stdout
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_run_that_fails_does_not_keep_the_others(tmp_path: Path) -> None:
    """Its folder is in use; the other one is trained, and the exit code tells."""
    words = ["-m", *SMALL, "env=cartpole", "seed=0,1", "total_steps=20", "eval.every=0", "run_dir=both"]
    with train.RunLock(tmp_path / "both/seed=0"):
        outcome = typed(tmp_path, *words)
    assert outcome.returncode == 1
    failed, finished = summary(outcome.stdout)
    assert failed.startswith("seed=0  failed (exit code 1)")
    assert finished.startswith("seed=1  finished, step 20")
    assert "is in use" in outcome.stderr


@pytest.mark.parametrize(
    ("steps", "lines", "words", "finished"),
    [
        ((), "", "total_steps=60", False),
        ((40,), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60", False),
        ((40, 60), '{"step": 60, "eval/return": 9.0}\n', "total_steps=60", True),
        ((40, 60), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60", False),
        ((60,), "", "total_steps=60 eval.every=0", True),
        ((40,), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60 eval.stop_at=9", True),
        ((40,), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60 eval.stop_at=9.5", False),
        ((20,), '{"step": 40, "eval/return": 9.0}\n', "total_steps=60 eval.stop_at=9", False),
        ((40,), '{"step": 40, "eval/return": null}\n', "total_steps=60 eval.stop_at=9", False),
    ],
)
def test_when_a_run_is_finished(steps: tuple[int, ...], lines: str, words: str, finished: bool, tmp_path: Path) -> None:
    for step in steps:
        (tmp_path / f"checkpoints/{step:012d}").mkdir(parents=True)
    (tmp_path / "metrics.jsonl").write_text(lines)
    state = sweep.state_of(tmp_path, load(["experiment=null", *words.split()]).settings)
    assert (state.step, state.finished) == (max(steps, default=None), finished)


def test_a_sweep_without_a_folder_makes_one(tmp_path: Path) -> None:
    """Named after its environment and the time; SIGTERM ends it well, before a run has begun to train."""
    process = subprocess.Popen(
        [*COMMAND, "-m", *SMALL, "env=cartpole", "seed=0,1"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = re.fullmatch(r"Sweep of 2 runs in run_dir=(runs/cartpole-v1-\d{8}-\d{6})\n", process.stdout.readline())
    assert process.stdout.readline() == "[1/2] seed=0\n"
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert summary(output)[1] == "seed=1  not started"
    assert os.listdir(tmp_path / told[1]) in ([], ["seed=0"])
