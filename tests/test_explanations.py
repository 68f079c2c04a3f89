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
<<<<<<< HEAD
NUMBERS = json.loads((PICTURES / "numbers.json").read_text())
=======
MOST_BYTES = 60_000
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def links(page: Path) -> list[tuple[str, str]]:
    """Text and target of each link and picture that does not lead to the web."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [(name, target) for name, target in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", text) if "://" not in target]


def definitions(source: Path) -> set[str]:
    """Names of a file's functions and classes, and ``Class.method`` of those inside."""
    found = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return found


@pytest.mark.parametrize("page", [README, *sorted(DOCS.glob("*.md"))], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    missing = [target for _, target in links(page) if not (page.parent / target.partition("#")[0]).exists()]
    assert not missing


def test_each_named_function_is_in_the_file_that_is_named_with_it() -> None:
    named = [(name.strip("`"), DOCS / target) for page in PAGES for name, target in links(page) if ".py" in target]
    missing = [f"{name} in {source.name}" for name, source in named if name not in definitions(source)]
    assert len(named) > 40 and not missing


@pytest.mark.parametrize(
    "trick",
    [
        *("kl", "unimix_probs", "symlog", "two_hot_bins", "ContinueHead", "BlockGRU", "imagine", "lambda_return"),
        *(
            "SlowUpdate",
            "replay_return",
            "reinforce_loss",
            "ReturnNormalizer",
            "split_context",
            "LaProp",
        ),
    ],
)
def test_each_trick_has_its_line_in_the_code(trick: str) -> None:
    assert trick in {name.strip("`") for name, target in links(PAGES[0]) if target.startswith("../dreamer_torchrl/")}


def test_pictures_are_there_small_and_shown() -> None:
    pages = (README, *PAGES)
    shown = {page.parent / target for page in pages for _, target in links(page) if target.endswith(".png")}
    assert shown == set(PICTURES.glob("*.png"))
    for picture in shown:
        assert picture.stat().st_size < MOST_BYTES
        with Image.open(picture) as image:
            image.verify()
        with Image.open(picture) as image:
            assert len(image.getcolors()) > 10  # something is drawn
>>>>>>> 87f1562 (Learner made of passable parts: optimizer, extra losses, priorities, importance weights, CUDA graph by choice; one LaProp; transitions are refused)


def test_the_page_says_what_was_measured() -> None:
    """Every number of the pictures' run is on the page."""
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


def test_a_folder_that_is_no_run_is_named(
    maker: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert maker.main([str(tmp_path), "--out", str(tmp_path / "pictures")]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()


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
    """With the page's own overrides, only shorter."""
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
    found = re.findall(r"^python -m dreamer_torchrl\.train ([^\n]*env=custom[^\n]*|experiment=[^\n]+)$", text, re.M)
    found += re.findall(r"`(experiment=[^`]+ env=custom\s[^`]+)`", text)
    assert len(found) >= 3
    for command in found:
        assert load(command.split()).settings.env.options
