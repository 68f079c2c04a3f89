"""Trainings on recorded data: alone, interrupted, without an environment, and online afterwards."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import dreamer_torchrl
from dreamer_torchrl import train
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.compose import load
from dreamer_torchrl.limits import ConfigError
from dreamer_torchrl.report import main as report
from dreamer_torchrl.training.loop import Training
from tests.training.training_examples import assert_same_run, episodes, lines, trained, words

EVALUATED = ("eval.every=4", "offline_updates=10")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in two environments, larger than those that learn from it."""
    more = ("env.num_envs=2", "size.belief=64", "total_steps=120", "eval.every=0", "train_ratio=0")
    return trained(tmp_path_factory.mktemp("recorded") / "run", *more)


@pytest.fixture(scope="module")
def whole(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("whole") / "run", *EVALUATED, f"offline={recorded}")


def progress(run: Path) -> dict[str, Any]:
    return Checkpoints(run / "checkpoints").load().parts["progress"]


def test_no_step_is_taken_and_updates_are_the_steps_of_all_records(whole: Path, recorded: Path) -> None:
    found = progress(whole)
    assert (found["steps"], found["updates"], found["offline"], found["episodes"]) == (0, 10, 10, 0)
    assert [line["step"] for line in episodes(whole)] == [4, 8, 10]
    assert lines(whole)[-1]["count/frames"] == 0
    assert [path.name for path in sorted((whole / "checkpoints").glob("0*"))] == ["000000000010"]
    stored = Checkpoints(whole / "checkpoints").load().all_steps()
    source = Checkpoints(recorded / "checkpoints").load().all_steps()
    second = source[source["stream"].flatten() == 1]["observation"]
    assert torch.equal(stored["observation"][-len(second) :], second)  # streams one after the other, whole from reset
    assert torch.equal(stored["done"].flatten().nonzero()[-1], torch.tensor([len(stored) - 1]))


@pytest.mark.parametrize("number", [3, 10])
def test_an_interruption_changes_nothing(
    number: int, whole: Path, recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before an update or an evaluation; the data may be gone when it goes on, they are in the checkpoint."""
    moved, run, update = tmp_path / "data", tmp_path / "run", Training.update
    recorded.rename(moved)

    def interrupted(training: Training, stop: Any) -> int:
        done = update(training, stop)
        if training.progress.updates == number:
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.requested:
                pass
        return done

    try:
        with monkeypatch.context() as patch:
            patch.setattr(Training, "update", interrupted)
            assert train.main(words(run, *EVALUATED, f"offline={moved}")) == 0
    finally:
        moved.rename(recorded)
    assert progress(run)["updates"] == number
    assert train.main([f"run_dir={run}"]) == 0
    assert_same_run(whole, run)
    assert episodes(run) == episodes(whole)


def test_online_afterwards_in_one_command_or_two(whole: Path, recorded: Path, tmp_path: Path) -> None:
    """Recorded steps count as prefill, so updates go on at once; the x axis goes on behind those of before."""
    online = (*EVALUATED, f"offline={recorded}", "prefill=1000", "offline_only=false", "total_steps=20")
    run = trained(tmp_path / "run", *online)
    found = progress(run)
    assert (found["steps"], found["offline"], found["updates"]) == (20, 10, 10 + 20 * 4 // 16)
    assert lines(run)[-1]["step"] == 30 and [x["step"] for x in episodes(run) if "eval/return" in x][-2:] == [28, 30]
    two = trained(tmp_path / "two", *online[:-2], "offline_only=true", "total_steps=20")
    assert progress(two)["updates"] == 10
    trained(two, *online)
    assert_same_run(run, two)


def test_updates_on_recorded_data_can_be_added(whole: Path, recorded: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *EVALUATED, f"offline={recorded}", "offline_updates=6")
    trained(run, *EVALUATED, f"offline={recorded}")
    assert_same_run(whole, run)


def test_without_an_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Specs are those of the data: the agent acts by numbers that it has never been told of."""
    folder, run = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        arrays = {"observation": generator.random((20, 3)), "action": np.eye(2)[generator.integers(2, size=20)]}
        np.savez(folder / f"{number}.npz", **arrays, reward=np.ones(20), is_terminal=np.arange(20) == 19)
    options = ("env=none", f"offline={folder}", "offline_updates=3", "eval.every=0")
    trained(run, *options)
    trained(run, *options, "offline_updates=5")
    assert progress(run)["updates"] == 5
    agent = dreamer_torchrl.load(run)
    action, _ = agent.act({"observation": np.zeros(3, np.float32)})
    assert action in (0, 1) or list(action) in ([0, 1], [1, 0])
    report([str(run)])
    assert "recorded data" in (run / "report.html").read_text()
    with pytest.raises(ConfigError, match=r"env=none is impossible"):
        load(words(tmp_path / "other", "env=none", "eval.every=0"))
    with pytest.raises(ConfigError, match=r"eval.every=5 is impossible: env=none"):
        load(words(tmp_path / "other", *options, "eval.every=5"))
    capsys.readouterr()
    short = words(tmp_path / "short", *options, "replay.length=60")
    assert train.main(short) == 2
    assert "60 steps for 1 environment, and a sequence has 61" in capsys.readouterr().out
    wrong = [word for word in words(tmp_path / "wrong", *options[1:]) if not word.startswith("env=")]
    assert train.main(wrong) == 2
    assert "'observation' is float32 [3] per step, and must be [4]: give the env=" in capsys.readouterr().out


def test_actions_of_an_environment_fit_those_of_its_recorded_steps(tmp_path: Path) -> None:
    """From its own run, where they are scaled, for Pendulum."""
    run = trained(tmp_path / "run", "env=pendulum", "total_steps=60", "train_ratio=0", "eval.every=0")
    more = ("env=pendulum", f"offline={run}", "offline_updates=2", "eval.every=0")
    trained(tmp_path / "offline", *more)
    action, _ = dreamer_torchrl.load(tmp_path / "offline").act(gymnasium.make("Pendulum-v1").reset(seed=0)[0])
    assert action.shape == (1,)
