"""The doctor finds what is wrong, names the remedy, and leaves sound environments alone."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dreamer_torchrl import doctor
from dreamer_torchrl.doctor import Finding, examine, machine, main
from tests.training.training_examples import trained


def levels(report: Iterable[Finding]) -> dict[str, str]:
    worst: dict[str, str] = {}
    for finding in report:
        order = ("ok", "warning", "problem")
        worst[finding.subject] = max(worst.get(finding.subject, "ok"), finding.level, key=order.index)
    return worst


def test_the_machine() -> None:
    report = list(machine())
    assert {"python", "torch", "torchrl", "gymnasium", "processor", "GPU", "gymnasium pictures"} <= set(levels(report))
    sound = ("torch", "tensorboard", "kernels", "gymnasium pictures", "Box2D", "H.264 videos")
    assert {levels(report)[subject] for subject in sound} == {"ok"}


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of it is a problem: the rest works without."""
    for module in ("av", "Box2D", "pygame"):
        monkeypatch.setitem(sys.modules, module, None)  # an import of it fails
    monkeypatch.setattr(doctor, "_mujoco_draws", str)  # takes seconds
    there = metadata.version

    def version(package: str) -> str:
        if package == "tensorboard":
            raise metadata.PackageNotFoundError(package)
        return there(package)

    monkeypatch.setattr(metadata, "version", version)
    report = list(machine())
    remedies = {finding.subject: finding.remedy for finding in report if finding.level == "warning"}
    assert remedies["tensorboard"] == "pip install 'dreamer_torchrl[tensorboard]' if you need it"
    assert remedies["Box2D"] == "pip install 'gymnasium[box2d]'"
    assert remedies["gymnasium pictures"] == "pip install 'gymnasium[classic-control]'"
    assert remedies["H.264 videos"].startswith("pip install --force-reinstall --no-deps --only-binary=av av; ")
    assert "problem" not in levels(report).values()


def test_a_sound_environment() -> None:
    report = list(examine("gym", {"id": "Pendulum-v1"}, steps=250))
    assert set(levels(report).values()) == {"ok"}
    text = "\n".join(map(str, report))
    assert "length 200 (200 to 200)" in text
    assert "action from -2 to 2, seen by the agent as -1 to 1" in text
    assert "bytes per step" in text
    assert "steps per second" in text


def test_a_broken_environment() -> None:
    """NaN is a problem, an episode that does not follow from its seed a warning; both lines say what to do."""
    report = list(examine("custom", {"factory": "tests.envs.toys:broken"}, steps=20))
    assert levels(report)["numbers"] == "problem"
    assert levels(report)["same seed"] == "warning"
    assert all(finding.remedy for finding in report if finding.subject in ("numbers", "same seed"))


class Camera(gymnasium.Env):
    """Shows pictures as floats, and leaves its bounds."""

    observation_space, action_space = spaces.Box(0, 1, (16, 16, 3), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros((16, 16, 3), np.float32), {}

    def step(self, action: int) -> tuple[Any, ...]:
        return np.full((16, 16, 3), 2, np.float32), 1.0, False, False, {}


def test_pictures_of_floats_are_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the doctor, and once when a training starts."""
    report = list(examine("custom", {"factory": "tests.test_doctor:Camera"}, steps=20))
    assert {levels(report)[subject] for subject in ("image", "bounds", "episodes")} == {"warning"}
    told = "Observation 'observation' [16, 16, 3] of float32 is a vector of 768 numbers here"
    text = "\n".join(map(str, report))
    assert told in text and "return so far 20" in text
    trained(tmp_path / "run", "env=custom", "env.factory=tests.test_doctor:Camera", "total_steps=4", "eval.every=0")
    printed = capsys.readouterr().out
    assert printed.count(told) == 1 and printed.count("Kernels in C") == 1


OLD = [("OldStep", "as old versions of Gym did: return"), ("NoSeed", "super().reset(seed=seed)")]


@pytest.mark.parametrize(("factory", "hint"), OLD)
def test_the_old_gym_interface_is_recognized(factory: str, hint: str) -> None:
    report = list(examine("custom", {"factory": f"tests.envs.test_gym:{factory}"}, steps=5))
    assert "problem" in levels(report).values() and hint in "\n".join(map(str, report))


@pytest.mark.parametrize(
    ("words", "code"),
    [("env=memory", 0), ("env=custom env.factory=tests.envs.toys:nothing", 1), ("env=no_such_thing", 2)],
)
def test_the_command(words: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--env", *words.split()]) == code
    shown = capsys.readouterr()
    assert ("same seed", "problem  making it", "no_such_thing")[code] in shown.out + shown.err
