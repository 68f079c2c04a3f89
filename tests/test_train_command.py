"""`python -m dreamer_torchrl.train` as a user meets it: real processes, their messages, exit codes and seconds."""

from __future__ import annotations

import errno
import os
import re
import shlex
import subprocess
import sys
import time
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
import yaml

from dreamer_torchrl import train
from dreamer_torchrl.config.compose import environment_name, load
from dreamer_torchrl.config.overrides import GROUPS, choices
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.envs.registry import atari_games
from tests.checkpoint.checkpoint_examples import read_only
from tests.training.training_examples import TINY

find = PathFinder.find_spec
COMMAND = (sys.executable, "-X", "importtime", "-m", "dreamer_torchrl.train")
TORCH = re.compile(r"^import time:.*\|\s+torch$", re.MULTILINE)
SECONDS = 20.0
"""The promise is 3; a busy machine is slow, not wrong, and what takes long is torch, which is looked for by itself."""


def run(*arguments: str, cwd: Path, **environment: str) -> tuple[int, str, str]:
    """Exit code, output and complaint of a real process that came to its end in time and without torch."""
    started = time.monotonic()
    outcome = subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert not TORCH.search(outcome.stderr), f"{arguments} imports torch"
    assert time.monotonic() - started < SECONDS
    said = [line for line in outcome.stderr.splitlines() if not line.startswith("import time:")]
    return outcome.returncode, outcome.stdout, "\n".join(said)


def test_a_mistake_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef make(): ...\n")
    code, output, complaint = run("env=custom", "env.factory=mine:mkae", cwd=tmp_path)
    assert (code, output, complaint.count("\n")) == (2, "", 0)
    assert "has no 'mkae': did you mean 'make'?" in complaint
    assert {path.name for path in tmp_path.iterdir()} == {"mine.py"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("--config-name=mine", "There is no option --config-name: there are --help, --cfg and --multirun;"),
        ("--seed=3", "settings have no dashes, as in seed=3 or experiment=NAME."),
        ("seed=1 job", "'job' is no override: write key=value"),
    ],
)
def test_options_that_are_not_there(arguments: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(arguments.split()) == 2
    said = capsys.readouterr()
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert told in said.err


@pytest.mark.parametrize(
    ("name", "override", "told"),
    [
        ("dm_control", "env=dmc_proprio", "pip install 'dreamer_torchrl[dmc]'"),
        ("tensorboard", "logger=tensorboard", "pip install 'dreamer_torchrl[tensorboard]'"),
    ],
)
def test_what_is_not_installed_is_named_with_its_command(
    name: str, override: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PathFinder, "find_spec", lambda asked, *more: None if asked == name else find(asked, *more))
    monkeypatch.delitem(sys.modules, name, raising=False)
    assert train.main([override]) == 2
    assert told in capsys.readouterr().err


def test_help_tells_all_settings(tmp_path: Path) -> None:
    assert run("list", cwd=tmp_path)[0] == run("--cfg", cwd=tmp_path)[0] == 0
    assert [*tmp_path.iterdir()] == []
    code, output, _ = run("seed=1", "--help", cwd=tmp_path)
    assert code == 0
    assert output.startswith("``python -m dreamer_torchrl.train``: train an agent, or continue a run.\n\nUsage:\n")
    told = yaml.safe_load(output[output.index("# Every setting of a run") :])
    assert {*told, "env", "size", "learner_part"} >= set(Settings.__dataclass_fields__)
    assert train.main(["-h"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "dream", "export"])
def test_a_folder_without_a_run_is_told_before_torch_is_there(command: str, tmp_path: Path) -> None:
    words = [sys.executable, "-X", "importtime", "-m", f"dreamer_torchrl.{command}", "nothere"]
    outcome = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 2
    assert "nothere is no run: there is no config.yaml in it." in outcome.stderr
    assert not TORCH.search(outcome.stderr)


def test_list_tells_all_choices(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["list"]) == 0
    output = capsys.readouterr().out
    for group in GROUPS:
        for name, text in choices(group).items():
            assert re.search(rf"^  {name} +{re.escape(text)}$", output, re.MULTILINE)
    assert ", ".join(atari_games()) in output


@pytest.mark.parametrize("option", ["--cfg", "--cfg job", "-c job"])
def test_the_configuration_is_printed_as_it_would_be_saved(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["env=pendulum", *option.split(), "total_steps=1e6"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values == load(["env=pendulum", "total_steps=1e6"]).values
    assert (values["env"]["id"], type(values["total_steps"])) == ("Pendulum-v1", int)


def test_the_first_lines_come_before_torch(tmp_path: Path) -> None:
    """Which run, and where; then the waiting."""
    with subprocess.Popen(
        [*COMMAND, *TINY, "env=pendulum", "seed=7"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        said: list[str] = []
        for line in process.stdout:
            assert not TORCH.search(line)
            said += [] if line.startswith("import time:") else [line]
            if len(said) == 2:
                break
        process.kill()
    assert re.fullmatch(r"dreamer_torchrl [\d.]+: Pendulum-v1, size own, 60 steps, seed 7\n", said[0])
    run_dir = re.fullmatch(r"run_dir=(runs/pendulum-v1-\d{8}-\d{6})\n", said[1])
    assert (tmp_path / run_dir[1]).is_dir()


def test_the_resume_command_works_as_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through a shell, for a folder whose name holds all that shells and Hydra mind."""
    run_dir = tmp_path / "it's my, (first) [run]=$1"
    assert train.main([*TINY, "total_steps=20", "eval.every=0", f"run_dir={run_dir}"]) == 0
    output = capsys.readouterr().out
    (evaluate,) = re.findall(r"Finished and saved at step 20\. Evaluate with: python -m (.*)", output)
    assert shlex.split(evaluate) == ["dreamer_torchrl.evaluate", str(run_dir)]
    arguments = f"""printf '%s\n' {train.resume_command(run_dir)} total_steps=25"""
    typed = subprocess.run(["sh", "-c", arguments], capture_output=True, text=True, check=True).stdout.splitlines()
    assert typed[:3] == ["python", "-m", "dreamer_torchrl.train"]
    assert train.main(typed[3:]) == 0
    output = capsys.readouterr().out
    assert f"Resumed at step 20 from {run_dir}/" in output and "Finished and saved at step 25." in output
    assert train.main([f"run_dir={run_dir}", "total_steps=10"]) == 0
    assert "25 steps are done already, more than total_steps=10." in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == [run_dir.name]


def test_a_run_without_updates_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        train.main([*TINY, "replay.batch=1000000", "total_steps=20", "eval.every=0", f"run_dir={tmp_path / 'run'}"])
        == 0
    )
    output = capsys.readouterr().out
    assert "Nothing will be learned: updates begin after step 8,000,000" in output
    assert "Finished and saved at step 20. There were 0 updates: nothing was learned." in output


def test_a_place_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with read_only(tmp_path):
        monkeypatch.chdir(tmp_path)
        assert train.main([f"run_dir={tmp_path / 'new' / 'run'}"]) == train.main([]) == 1
        monkeypatch.chdir(tmp_path.parent)
    named, new = capsys.readouterr().err.splitlines()
    assert f"The run directory {tmp_path / 'new' / 'run'} cannot be written: " in named
    assert re.search(r"/runs/cartpole-v1-\d+-\d+ cannot be written: .*, or give another run_dir", new)
    full = train.RunNotWritable(tmp_path, OSError(errno.ENOSPC, "No space left on device"))
    assert str(full).endswith("No space left on device. Make room on its disk, or give another run_dir.")


def test_a_new_folder_is_new_and_named_after_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that start in the same second do not meet."""
    monkeypatch.chdir(tmp_path)
    for overrides, name in (
        ("env=grid_reach", "gridreach-v0"),
        ("env=ms_pacman", "ms-pacman"),
        ("env=custom env.factory=dreamer_torchrl.envs.tasks:Memory", "dreamer-torchrl-envs-tasks-memory"),
    ):
        settings = load(overrides.split()).settings
        made = [train.new_folder(environment_name(settings)) for _ in range(3)]
        assert len(set(made)) == 3 and all(path.is_dir() for path in made)
        assert all(re.fullmatch(rf"runs/{name}-\d{{8}}-\d{{6}}(-\d)?", str(path)) for path in made)
