"""Opening a run for a command: every command says the same of a run that cannot be opened."""

from __future__ import annotations

import argparse
import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dreamer_torchrl import dream, evaluate, export
from dreamer_torchrl.training.loading import load, open_run
from tests.checkpoint.checkpoint_examples import flip_a_bit
from tests.training.training_examples import trained, trained_twice

COMMANDS = pytest.mark.parametrize(
    "main", [dream.main, evaluate.main, export.main], ids=["dream", "evaluate", "export"]
)
Main = Callable[[list[str]], int]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_twice(tmp_path_factory.mktemp("opening") / "run", 20, 40, "train_ratio=0", "eval.every=0")


@pytest.fixture
def damaged(kept: Path, tmp_path: Path) -> Path:
    run = shutil.copytree(kept, tmp_path / "run")
    flip_a_bit(run / "checkpoints" / "000000000040" / "learner.pt")
    return run


def ends_with(code: int, main: Main, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == code
    return capsys.readouterr().err


@COMMANDS
def test_every_command_says_the_same(
    main: Main, kept: Path, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged checkpoint that is named is refused; without a name the one before it is used, if there is one."""
    assert f"{tmp_path} is no run" in ends_with(2, main, [str(tmp_path)], capsys)
    complaint = ends_with(2, main, [str(kept), "--checkpoint", "000000000030"], capsys)
    assert "has no checkpoint '000000000030'; it has 000000000020, 000000000040" in complaint
    assert "learner.pt" in ends_with(3, main, [str(damaged), "--checkpoint", "000000000040"], capsys)
    assert main([str(damaged)]) == 0
    captured = capsys.readouterr()
    assert f"{damaged / 'checkpoints' / '000000000040'} is damaged: learner.pt" in captured.err
    assert "20" in captured.out and "40:" not in captured.out
    flip_a_bit(damaged / "checkpoints" / "000000000020" / "learner.pt")
    assert "No checkpoint can be used" in ends_with(3, main, [str(damaged)], capsys)


@pytest.mark.usefixtures("threads")
def test_the_threads_of_training(kept: Path, tmp_path: Path) -> None:
    run = shutil.copytree(kept, tmp_path / "run")
    text = (run / "config.yaml").read_text()
    for count in (2, 1):
        (run / "config.yaml").write_text(text.replace("threads: 1", f"threads: {count}"))
        open_run(argparse.ArgumentParser(), run, None)
        assert torch.get_num_threads() == count


def test_what_was_learned_loads_where_the_environment_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On whatever machine: specs and bounds are in the checkpoint. Only playing needs the environment."""
    module = tmp_path / "here_today.py"
    module.write_text("import gymnasium\n\n\ndef make():\n    return gymnasium.make('MountainCarContinuous-v0')\n")
    monkeypatch.syspath_prepend(tmp_path)
    run = trained(tmp_path / "run", "env=custom", "env.factory=here_today:make", "total_steps=20", "eval.every=0")
    module.unlink()
    monkeypatch.delitem(sys.modules, "here_today")
    importlib.invalidate_caches()
    loaded = load(run)
    action, _ = loaded.act({"observation": np.zeros(2, dtype=np.float32)})
    assert action.shape == (1,) and loaded.action_bounds["action"][1] == 1
    assert "here_today" in ends_with(2, evaluate.main, [str(run)], capsys)
