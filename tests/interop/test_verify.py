"""The comparison with recordings: it notices what is wrong. That they hold is in `test_verify_paths.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dreamer_torchrl.interop.recording import Recording, part_of, uniform_for
from dreamer_torchrl.interop.verify import Row, compare, main, verify
from dreamer_torchrl.learners.learner import Hyperparameters
from dreamer_torchrl.modules.distributions import sample_one_hot

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording that a test may spoil."""
    for file in GOLDEN.glob("proprio_cont_*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def spoil(folder: Path, part: str, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the largest number of one array of a recording."""
    path = folder / f"proprio_cont_{part}.npz"
    with np.load(path) as file:
        arrays = dict(file)
    array = arrays[name].copy()
    largest = np.unravel_index(np.abs(array).argmax(), array.shape)
    array[largest] = change(array[largest])
    np.savez(path, **arrays | {name: array})


def wrong(folder: Path = GOLDEN) -> list[str]:
    """What the comparison finds wrong."""
    return [row.quantity for row in verify(Recording(folder, "proprio_cont")) if not row.ok]


# It is run


def test_the_whole_first_image_is_looked_at() -> None:
    assert "1 decoder image row 0" in {row.quantity for row in verify(Recording(GOLDEN, "vision_disc"))}


def test_it_runs_from_the_command_line() -> None:
    command = [sys.executable, "-m", "dreamer_torchrl.interop.verify", str(GOLDEN), "--case", "proprio_cont"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "quantities agree with the recording" in done.stdout.splitlines()[-1]


# What is wrong is found and named


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("enc/mlp0/kernel", "1 encoder"),
        ("dyn/dyngru/kernel", "1 posterior belief"),
        ("dyn/priorlogit/kernel", "1 prior logits"),
        ("dec/mlp/linear0/kernel", "1 decoder vector"),
        ("pol/mlp/linear1/kernel", "1 img log probability"),
        ("slowval/head/logits/kernel", "1 rep slowval logits"),
    ],
)
def test_a_weight_that_is_1_percent_wrong(folder: Path, name: str, named: str) -> None:
    spoil(folder, "params0", name, lambda number: 1.01 * number)
    assert named in wrong(folder)


def test_a_wrong_weight_makes_it_exit_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoil(folder, "params0", "val/mlp/linear2/kernel", lambda number: 1.01 * number)
    assert main([str(folder), "--case", "proprio_cont"]) == 1
    lines = capsys.readouterr().out.splitlines()
    named = [line for line in lines if line.endswith("WRONG")]
    assert any(line.startswith("1 rep val logits") for line in named)
    assert not any(line.startswith("1 posterior logits") for line in named)  # what is right stays so
    assert lines[-1] == f"{len(lines) - 2 - len(named)} of {len(lines) - 2} quantities agree with the recording."


def test_each_part_of_a_recording_is_read(folder: Path) -> None:
    """A number that was changed in it is wrong there and nowhere else."""
    places = {
        "1 encoder": ("step1", "tokens"),
        "1 rep con logits": ("step1", "rep/con_logits"),
        "1 normalizer percentiles": ("step1", "retnorm/batch_perc"),
        "1 grad pol/mlp/linear1/kernel": ("grads1", "pol/mlp/linear1/kernel"),
        "1 nu dyn/obs0/bias": ("opt1_nu", "dyn/obs0/bias"),
        "2 img entropy": ("step2", "img/pol/entropy"),
        "2 loss representation": ("step2", "losses/rep"),
        "2 mu rew/head/logits/bias": ("opt2_mu", "rew/head/logits/bias"),
        "2 slow critic slowval/mlp/norm1/scale": ("params2", "slowval/mlp/norm1/scale"),
        "acting 1 belief": ("policy", "t1/out/deter"),
    }
    for part, name in places.values():
        spoil(folder, part, name, lambda number: 1.01 * number)
    found = set(wrong(folder))
    assert places.keys() <= found
    # The update follows from the recorded gradient; the recorded losses are compared step by step and as a mean.
    follow = {"1 mu pol/mlp/linear1/kernel", "1 nu pol/mlp/linear1/kernel", "2 loss rep per step"}
    follow |= {"2 nu dyn/obs0/bias", "2 mu dyn/obs0/bias", "2 param dyn/obs0/bias"}
    assert found - places.keys() <= follow


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"return_lambda": 0.94}, ["1 img returns", "1 loss actor"]),
        ({"replay_lambda": 0.94}, ["1 rep returns"]),
        ({"discount_in_continue": False}, ["1 loss continue", "1 img weight"]),
        ({"slow_target": True}, ["1 img returns", "1 img advantage"]),
        ({"free_nats": 1.2, "entropy_scale": 4e-4}, ["1 loss dynamics", "1 loss policy per step"]),
        (
            {"reward_grad": False, "slow_rate": 0.03},
            ["1 grad enc/mlp0/kernel", "1 slow critic slowval/mlp/norm1/scale"],
        ),
        ({"replay_value_grad": False, "warmup": 3}, ["1 grad dyn/dyngru/kernel", "2 param enc/mlp0/kernel"]),
        ({"return_rate": 0.02, "clip": 0.25}, ["1 normalizer after", "1 nu enc/mlp0/kernel"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_bent_setting(monkeypatch: pytest.MonkeyPatch, change: dict[str, float], named: list[str]) -> None:
    given = Recording.hyperparameters

    def bent(self: Recording) -> Hyperparameters:
        return replace(given(self), **change)

    monkeypatch.setattr(Recording, "hyperparameters", bent)
    assert set(named) <= set(wrong())


def test_a_bent_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the 1% of the uniform distribution in it, the divergence is another."""

    def pure(logits: Tensor, unimix: float) -> Tensor:
        return logits.softmax(-1)

    monkeypatch.setattr("dreamer_torchrl.objectives.world_model.unimix_probs", pure)
    found = wrong()
    assert {"1 loss dynamics", "1 loss representation", "1 grad dyn/priorlogit/kernel"} <= set(found)
    assert not any(name.startswith(("1 encoder", "1 posterior", "acting")) for name in found)


def test_numbers_that_are_no_numbers_are_wrong(folder: Path) -> None:
    spoil(folder, "params0", "con/head/logit/bias", lambda number: np.nan)
    assert "1 rep con logits" in wrong(folder)


# What cannot be compared


def test_an_unknown_case_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for folder, there in ((GOLDEN, "there are proprio_cont, vision_disc"), (tmp_path, "there is no <case>_config")):
        with pytest.raises(SystemExit) as stopped:
            main([str(folder), "--case", "proprio"])
        assert stopped.value.code == 2
        assert f"No recording 'proprio' in {folder}: {there}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("dyn.rssm.obslayers", 2, r"dyn\.rssm\.obslayers=2; this agent only knows 1"),
        ("value.bins", 41, r"value\.bins=41; this agent only knows 255"),
        ("enc.simple.symlog", False, r"enc\.simple\.symlog=False; this agent only knows True"),
        ("policy.act", "gelu", r"policy\.act=gelu; this agent only knows silu"),
        ("advnorm.impl", "perc", r"advnorm\.impl=perc; this agent only knows none"),
        ("imag_last", 3, r" imag_last=3; this agent only knows 0"),
        ("repl_loss.slowreg", 0.5, r"repl_loss\.slowreg=0\.5; this agent only knows 1\.0"),
    ],
)
def test_a_structure_that_we_do_not_have_is_named(folder: Path, place: str, value: object, message: str) -> None:
    recording = Recording(folder, "proprio_cont")
    *path, last = place.split(".")
    section = recording.config["agent"]
    for name in path:
        section = section[name]
    section[last] = value
    with pytest.raises(ValueError, match=message):
        recording.agent()


def test_a_recording_that_lacks_something_is_no_traceback(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(folder / "proprio_cont_step1.npz") as file:
        arrays = dict(file)
    del arrays["img/adv"]
    np.savez(folder / "proprio_cont_step1.npz", **arrays)
    with pytest.raises(SystemExit) as stopped:
        main([str(folder), "--case", "proprio_cont"])
    assert stopped.value.code == 2
    assert "proprio_cont cannot be compared: 'img/adv'" in capsys.readouterr().err


# What other recordings may hold


def test_the_agent_has_the_recorded_share_of_the_uniform_distribution() -> None:
    recording = Recording(GOLDEN, "proprio_cont")
    assert recording.agent().rssm.unimix == 0.01
    recording.config["agent"]["dyn"]["rssm"]["unimix"] = 0.05
    assert recording.agent().rssm.unimix == 0.05


def test_classes_of_an_observation_follow_from_its_logits() -> None:
    recording = Recording(GOLDEN, "proprio_cont")
    recording.config["obs"] |= {"item": ["int32", []], "slots": ["uint8", [3, 2]]}
    with pytest.raises(ValueError, match="'item' of dtype int32"):
        recording.agent()
    shapes = {"dec/vec/item/logits/bias": [7], "dec/vec/slots/logits/bias": [24]}
    recording.config["param_shapes"] |= shapes
    spaces = recording.agent().spaces
    assert spaces["item"].classes == (7,) and spaces["item"].shape == ()
    assert spaces["slots"].classes == (4,) * 6 and spaces["slots"].shape == (3, 2)


def test_actions_of_several_keys_are_drawn_again() -> None:
    recording = Recording(GOLDEN, "proprio_cont")
    recording.config["act"] = {
        "steer": {"dtype": "float32", "shape": [2], "discrete": False, "classes": None},
        "gear": {"dtype": "int32", "shape": [], "discrete": True, "classes": 3},
        "buttons": {"dtype": "int32", "shape": [2, 2], "discrete": True, "classes": [[4, 4], [4, 4]]},
    }
    agent = recording.agent()
    assert list(agent.action_space.spaces) == recording.action_keys == ["buttons", "gear", "steer"]
    policy = agent.actor.distribution(3 * torch.randn(5, 6, agent.action_space.parameter_size))
    drawn = policy.sample()
    tensors = {f"img/act/{key}": value for key, value in agent.action_space.restore(drawn).items()}
    buttons, gear, steer = policy.parts
    tensors["img/pol/buttons/logits"] = buttons.logits.unflatten(-2, (2, 2))
    tensors["img/pol/gear/logits"] = gear.logits.squeeze(-2)
    tensors["img/pol/steer/mean"], tensors["img/pol/steer/stddev"] = steer.mean, steer.stddev
    noise = recording.action_noise(agent, tensors, "img/act", "img/pol")
    assert noise.shape == (5, 6, agent.action_space.noise_size)
    torch.testing.assert_close(policy.sample(noise), drawn)
    # One key may be written without its name.
    tensors = {"out/act": torch.arange(3), "pol/gear/logits": torch.randn(3, 3)}
    assert part_of(tensors, "out/act", "gear") is tensors["out/act"]
    assert part_of(tensors, "pol", "gear", "/logits") is tensors["pol/gear/logits"]
    assert part_of(tensors, "pol", "gear", "/mean") is None


# Its tools


def test_the_relative_error_is_relative_to_the_largest() -> None:
    row = compare("it", torch.tensor([100.0, 0.001]), np.array([100.5, 0.0]), 0.01)
    assert (row.absolute, row.relative, row.ok) == (0.5, 0.5 / 100.5, True)
    assert not compare("it", torch.tensor([100.0]), np.array([102.0]), 0.01).ok
    assert compare("it", torch.zeros(2), np.zeros(2), 0.01).ok
    assert not compare("it", torch.tensor([0.02, 0.0]), np.zeros(2), 0.01).ok
    assert not Row("it", np.nan, np.nan, 0.01).ok
    # What may cancel is not held to what is left of it.
    assert not compare("it", torch.tensor([0.001]), np.array([0.002]), 0.01).ok
    assert compare("it", torch.tensor([0.001]), np.array([0.002]), 0.01, least=0.1).ok
    with pytest.raises(ValueError, match=r"it: \[3\] against recorded \[2\]"):
        compare("it", torch.zeros(3), np.zeros(2), 0.01)


def test_noise_repeats_what_was_drawn() -> None:
    probs = torch.rand(200, 4, 6).softmax(-1)
    drawn = torch.nn.functional.one_hot(torch.randint(6, (200, 4)), 6).float()
    noise = uniform_for(probs, drawn)
    assert ((noise >= 0) & (noise < 1)).all()
    assert torch.equal(sample_one_hot(probs, noise), drawn)
