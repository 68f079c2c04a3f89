"""The doctor finds what is wrong, says how to mend it, and leaves sound environments alone."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from dreamer_torchrl import doctor
from dreamer_torchrl.doctor import Report, examine, machine, main
from dreamer_torchrl.record import video


def levels(report: Report) -> dict[str, str]:
    """The worst level of each subject."""
    worst: dict[str, str] = {}
    for finding in report.findings:
        order = ("ok", "warning", "problem")
        worst[finding.subject] = max(worst.get(finding.subject, "ok"), finding.level, key=order.index)
    return worst


def test_the_machine() -> None:
    report = machine()
    assert {"python", "torch", "torchrl", "gymnasium", "processor", "GPU", "gymnasium pictures"} <= set(levels(report))
    sound = ("torch", "tensorboard", "gymnasium pictures", "Box2D", "H.264 films")
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
    report = machine()
    mends = {finding.subject: finding.mend for finding in report.findings if finding.level == "warning"}
    assert mends["tensorboard"] == "pip install 'dreamer_torchrl[tensorboard]' if you need it"
    assert mends["Box2D"] == "pip install 'gymnasium[box2d]'"
    assert mends["gymnasium pictures"] == "pip install 'gymnasium[classic-control]'"
    assert mends["H.264 films"].startswith("pip install --force-reinstall --no-deps --only-binary=av av; ")
    assert report.exit_code == 0


def test_an_av_without_the_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "ENCODER", "no_such_encoder")
    monkeypatch.setattr(doctor, "_mujoco_draws", str)
    (finding,) = (finding for finding in machine().findings if finding.subject == "H.264 films")
    assert (finding.level, finding.text) == ("warning", f"none (av {metadata.version('av')} has no no_such_encoder)")


def test_a_sound_environment() -> None:
    report = examine("gym", {"id": "Pendulum-v1"}, steps=250)
    assert set(levels(report).values()) == {"ok"}
    text = str(report)
    assert "length 200 (200 to 200)" in text
    assert "action from -2 to 2, seen by the agent as -1 to 1" in text
    assert "bytes per step" in text
    assert "steps per second" in text


def test_a_broken_environment() -> None:
    """NaN is a problem, an episode that does not follow from its seed a warning; both lines say what to do."""
    report = examine("custom", {"factory": "tests.envs.toys:broken"}, steps=20)
    assert levels(report)["numbers"] == "problem"
    assert levels(report)["same seed"] == "warning"
    assert report.exit_code == 1
    assert all(finding.mend for finding in report.findings if finding.subject in ("numbers", "same seed"))


def test_an_environment_that_cannot_be_made() -> None:
    report = examine("gym", {"id": "CartPol-v1"})
    assert report.exit_code == 1
    assert "did you mean 'CartPole-v1'" in str(report)


@pytest.mark.parametrize(("words", "code"), [("env=memory", 0), ("env=no_such_thing", 2)])
def test_the_command(words: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--env", *words.split()]) == code
    shown = capsys.readouterr()
    assert ("same seed" in shown.out) if code == 0 else ("no_such_thing" in shown.err)
