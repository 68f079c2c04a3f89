"""The pages dreamerv3.md and your_environment.md: their numbers were measured, their environment trains."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dreamer_torchrl import doctor
from dreamer_torchrl.config.compose import load
from tests.test_docs import DOCS, README, blocks, links
from tests.training.training_examples import lines, trained

PICTURES = DOCS / "pictures"
NUMBERS = json.loads((PICTURES / "numbers.json").read_text())


def test_the_page_says_what_was_measured() -> None:
    text = (DOCS / "dreamerv3.md").read_text()
    missing = {key: number for key, number in NUMBERS.items() if not re.search(rf"(?<![\d.]){number}(?!\d)", text)}
    assert len(NUMBERS) > 30 and not missing


@pytest.fixture
def maker(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.setattr(importlib.import_module("opened_run"), "BATCHES", 2)
    yield importlib.import_module("make_pictures")
    for name in ("make_pictures", "opened_run"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_pictures_are_made_from_a_run(maker: ModuleType, tmp_path: Path) -> None:
    """All of them, from a training of a second, with the same numbers by name."""
    run = trained(tmp_path / "run", "env=cartpole", "total_steps=60")
    assert maker.main([str(run), "--out", str(tmp_path / "pictures")]) == 0
    made = {path.name for path in (tmp_path / "pictures").iterdir()}
    readmes = {target.rpartition("/")[2] for _, target in links(README)}  # by the dream command
    assert made == {path.name for path in PICTURES.iterdir()} - readmes
    numbers = json.loads((tmp_path / "pictures" / "numbers.json").read_text())
    assert numbers["steps"] == "60" and numbers["gate_untrained"].startswith("0.2")
    assert {key for key in NUMBERS if not key.startswith("dream_error")} <= set(numbers)


@pytest.fixture
def parking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The environment of the page as a file in the present folder; its code."""
    (_, code), *_ = blocks(DOCS / "your_environment.md", "python")
    (tmp_path / "parking.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield code
    sys.modules.pop("parking", None)


def test_your_environment_trains(parking: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "env=custom", "env.factory=parking:Parking")
    (evaluation,) = [line for line in lines(run) if "eval/return" in line]
    assert evaluation["step"] == 60 and 2 <= evaluation["eval/length"] <= 50
    assert lines(run)[-1]["count/updates"] > 5


def test_the_doctor_says_what_the_page_says(parking: str, capsys: pytest.CaptureFixture[str]) -> None:
    """But for speed and random returns, which depend on the machine."""
    assert doctor.main(["--env", "env=custom", "env.factory=parking:Parking"]) == 0
    found = capsys.readouterr().out.splitlines()
    (shown,) = [block for _, block in blocks(DOCS / "your_environment.md", "text") if block.startswith("ok ")]
    steady = [line for line in shown.splitlines() if "episodes:" not in line and "speed:" not in line]
    assert len(found) == len(shown.splitlines()) and set(steady) <= set(found)


def test_commands_of_the_pages_are_understood(parking: str) -> None:
    text = "".join(page.read_text() for page in sorted(DOCS.glob("*.md")))
    found = re.findall(r"^python -m dreamer_torchrl\.train ((?!-)[^\n]*env=[^\n]*)$", text, re.M)
    assert len(found) >= 2
    for command in found:
        settings = load(command.split()).settings
        assert settings.env.options or settings.offline
