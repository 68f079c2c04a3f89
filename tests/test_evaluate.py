"""Evaluation: the same numbers as in training, whatever episodes are asked for, and what it says of faults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import dreamer_torchrl
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.evaluate import main
from dreamer_torchrl.training.loading import LoadedRun
from tests.checkpoint.checkpoint_examples import read_only
from tests.training.training_examples import lines, trained, trained_twice


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_twice(tmp_path_factory.mktemp("cartpole") / "run", 20, 40, "eval.episodes=5", "train_ratio=16")


@pytest.mark.parametrize(("checkpoint", "step"), [(None, 40), ("000000000020", 20)])
def test_the_same_numbers_as_in_training(checkpoint: str | None, step: int, cartpole: Path, tmp_path: Path) -> None:
    words = [str(cartpole), "--output", str(tmp_path / "out.json")]
    assert main([*words, "--checkpoint", checkpoint] if checkpoint else words) == 0
    result = json.loads((tmp_path / "out.json").read_text())
    (logged,) = (line for line in lines(cartpole) if line["step"] == step and "eval/return" in line)
    assert result["step"] == step and len(result["returns"]) == 5 == logged["eval/episodes"]
    assert result["mean"] == logged["eval/return"] and result["deviation"] == logged["eval/return_std"]
    assert sum(result["lengths"]) / 5 == logged["eval/length"]


def test_what_it_prints(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per episode; the file lies in the run, and the checkpoints stay as they were."""
    before = Checkpoints(cartpole / "checkpoints").names()
    assert main([str(cartpole), "--episodes", "3", "--deterministic"]) == 0
    printed = capsys.readouterr().out.splitlines()
    result = json.loads((cartpole / "evaluation.json").read_text())
    assert result["deterministic"] is True and result["checkpoint"] == "000000000040"
    assert [float(line.split()[3]) for line in printed[:3]] == result["returns"] == result["lengths"]
    assert printed[3].startswith(f"step 40: mean return {result['mean']:.2f} +- ")
    assert printed[4] == f"Written to {cartpole / 'evaluation.json'}."
    assert Checkpoints(cartpole / "checkpoints").names() == before


def test_it_films_the_first_episode(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many frames as it had actions: the last observation is not acted upon."""
    import av

    assert main([str(cartpole), "--episodes", "1", "--video"]) == 0
    length = json.loads((cartpole / "evaluation.json").read_text())["lengths"][0]
    (video,) = (cartpole / "videos").iterdir()
    assert f"Filmed: {video}." in capsys.readouterr().out
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) == length + 1


def test_a_run_that_cannot_be_written(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with read_only(cartpole):
        assert main([str(cartpole), "--episodes", "1"]) == 1
    captured = capsys.readouterr()
    assert "step 40: mean return" in captured.out and "Give another --output." in captured.err


def test_an_environment_that_breaks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken"
    custom = ("env=custom", "env.factory=tests.training.training_toys:Faulty", "eval.every=0", "total_steps=12")
    fault = ("+env.arguments.fault=raise", "+env.arguments.share=1", f"+env.arguments.only_while={broken}")
    run = trained(tmp_path / "run", *custom, *fault)
    broken.touch()
    with pytest.raises(SystemExit) as end:
        main([str(run)])
    assert end.value.code == 1
    assert "the gearbox broke" in capsys.readouterr().err


def test_a_loaded_run_has_the_weights_of_its_checkpoint(cartpole: Path) -> None:
    old, new = dreamer_torchrl.load(cartpole, "000000000020"), dreamer_torchrl.load(cartpole)
    assert isinstance(new, LoadedRun)
    for run, name in ((old, "000000000020"), (new, "000000000040")):
        saved = Checkpoints(cartpole / "checkpoints").read(name).parts["learner"]["agent"]
        state = run.agent.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in saved.items()) and saved.keys() == state.keys()
    assert not torch.equal(next(old.agent.parameters()), next(new.agent.parameters()))


def test_recorded_steps_are_the_newest(cartpole: Path) -> None:
    run = dreamer_torchrl.load(cartpole)
    assert run.recorded(100).shape == (40, 1)
    assert torch.equal(run.recorded(7)["observation"], run.recorded(100)["observation"][-7:])
