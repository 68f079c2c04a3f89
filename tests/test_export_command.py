"""What the export command says of its file: how far it is from the original, or what is wrong."""

from __future__ import annotations

import copy
import json
import math
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.export import Difference, compare, export_policy, largest_difference, main
from tests.agents.acting_examples import agent_for, recorded
from tests.checkpoint.checkpoint_examples import flip_a_bit
from tests.training.training_examples import trained_twice


@pytest.fixture(scope="module")
def buttons(tmp_path_factory: pytest.TempPathFactory) -> tuple[Agent, Path]:
    """An agent that makes two choices at each step, and its policy in a file."""
    torch.manual_seed(1)
    agent = agent_for("multi_discrete")
    return agent, export_policy(agent, tmp_path_factory.mktemp("buttons") / "policy.pt2")


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> tuple[Agent, Path]:
    """An agent that draws floats, and its policy in a file."""
    torch.manual_seed(1)
    agent = agent_for("Pendulum-v1")
    path = tmp_path_factory.mktemp("pendulum") / "policy.pt2"
    return agent, export_policy(agent, path, sample=True, bounds={"action": (-2, 2)})


# The comparison


def test_a_file_is_its_original(buttons: tuple[Agent, Path]) -> None:
    """Numbers to rounding and choices exactly: 4 classes of the state and 2 of the action at each step."""
    steps = recorded(buttons[0], 16, 3)
    difference = compare(*buttons, steps)
    assert difference.largest < 1e-5 and difference.other == 0
    assert difference.choices == 16 * 3 * (4 + 2)
    assert largest_difference(*buttons, steps) == difference.largest


def test_a_file_that_draws_is_compared_under_the_same_noise(pendulum: tuple[Agent, Path]) -> None:
    """Recorded latents are not read: they are older than the weights, and their states are class indices."""
    steps = recorded(pendulum[0], 16, 1)
    steps["state"] = torch.zeros(16, 1, 4, dtype=torch.uint8)
    steps["belief"] = torch.full((16, 1, 16), torch.nan)
    difference = compare(*pendulum, steps, {"action": (-2, 2)})
    assert difference.largest < 1e-5 and difference.other == 0


def test_other_bounds_are_noticed(pendulum: tuple[Agent, Path]) -> None:
    assert largest_difference(*pendulum, recorded(pendulum[0], 4, 2), {"action": (-2, 3)}) > 1e-2


def changed(agent: Agent, name: str, number: float) -> Agent:
    """A copy with other numbers in a part of one parameter."""
    other = copy.deepcopy(agent)
    nn.init.constant_(other.get_parameter(name)[:2], number)
    return other


def test_other_weights_are_noticed(buttons: tuple[Agent, Path]) -> None:
    agent, path = buttons
    other = changed(agent, "rssm.core.gates.bias", 1.0)
    assert largest_difference(other, path, recorded(agent, 4, 2)) > 1e-2


def test_another_choice_counts_as_a_whole(buttons: tuple[Agent, Path]) -> None:
    agent, path = buttons
    always_third = changed(agent, "actor.heads.0.logits.bias", -1e3)
    difference = compare(always_third, path, recorded(agent, 8, 2))
    assert difference.other > 0 and difference.largest >= 1


def test_what_is_not_a_number_is_no_small_difference(pendulum: tuple[Agent, Path]) -> None:
    agent, path = pendulum
    broken = changed(agent, "actor.heads.0.mean.bias", torch.nan)
    assert math.isnan(largest_difference(broken, path, recorded(agent, 1, 2), {"action": (-2, 2)}))


def test_the_verdict_in_words() -> None:
    assert str(Difference(0.0, 1200, 0)) == "0.0e+00, and all 1,200 discrete choices are equal"
    assert str(Difference(1.0, 1200, 3)) == "1.0e+00, and 3 of 1,200 discrete choices differ"


# The command


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on three environments at once, with a checkpoint at step 12 and one at step 24."""
    options = ("env=pendulum", "env.num_envs=3", "train_ratio=0", "eval.every=0")
    return trained_twice(tmp_path_factory.mktemp("export") / "run", 12, 24, *options)


def test_the_command_writes_the_file_into_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    assert (run / "policy.pt2").is_file()
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{run / 'policy.pt2'}, 0.")
    assert second.startswith("Largest difference to the original over 24 recorded steps: ")
    assert second.endswith(" and all 96 discrete choices are equal.")


def test_the_command_takes_checkpoint_place_and_draws(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "deeper" / "drawn.pt2"
    assert main([str(run), "--checkpoint", "000000000012", "--output", str(output), "--sample"]) == 0
    with zipfile.ZipFile(output) as archive:
        (description,) = (name for name in archive.namelist() if name.endswith("policy.json"))
        assert json.loads(archive.read(description))["sample"] is True


def test_a_file_that_differs_ends_with_an_error_code(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dreamer_torchrl.export.TOLERANCE", -1.0)
    assert main([str(run), "--output", str(tmp_path / "policy.pt2")]) == 1


def test_a_damaged_replay_is_named(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only exporting needs one, and only the steps in it: what is compared is read from them."""
    copied = shutil.copytree(run, tmp_path / "run")
    files = sorted((copied / "checkpoints" / "replay").iterdir())
    for file in files:
        if file.name.startswith("latents"):
            flip_a_bit(file)
    assert main([str(copied)]) == 0
    steps = [file for file in files if file.name.startswith("steps")]
    flip_a_bit(steps[-1])
    assert len(steps) == 2 and main([str(copied)]) == 3
    assert f"The replay of {copied} is damaged: {steps[-1].name} has another checksum" in capsys.readouterr().err


def test_another_ending_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(run), "--output", "policy.onnx"])
    assert end.value.code == 2
    assert "name it policy.pt2" in capsys.readouterr().err
