"""The tables of the page about benchmarks are those of the files that were committed, and every program is in it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.config.test_configuration_page import program_of_docs

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return program_of_docs("make_benchmarks")


def test_tables_are_up_to_date(generator: ModuleType) -> None:
    page = PAGE.read_text()
    assert page.count("<!-- made by docs/make_benchmarks.py: ") == 3
    assert page == generator.filled(page), "run: python docs/make_benchmarks.py"


def test_a_changed_number_is_noticed(generator: ModuleType) -> None:
    page = PAGE.read_text()
    assert generator.filled(page.replace("0.38", "0.37").replace("0.525 s", "0.425 s")) == page


def test_each_race_has_a_row(generator: ModuleType, tmp_path: Path) -> None:
    assert generator.races(tmp_path / "none.csv") == ""
    file = tmp_path / "races.csv"
    file.write_text("task,system,seed,minutes,ended,frames,last\ncartpole,sb3-ppo,0,5.0,1.25,100096,480.5\n")
    assert generator.races(file).splitlines()[2:] == ["| `cartpole` | `sb3-ppo` | 0 | 1.25 | 100,096 | 480.5 |"]


def test_what_must_be_known_of_a_result_stands_below_it(generator: ModuleType) -> None:
    """Memory that was shared, and what was noted by hand."""
    assert generator.remarks({"runs": [{"seed": 1}], "note": "Stopped by hand."}) == ["Stopped by hand."]
    (shared,) = generator.remarks({"workloads": [], "settings": {"against": "torchrl"}})
    assert "one process" in shared and generator.remarks({"workloads": [], "settings": {"against": "sheeprl"}}) == []
    for file in (ROOT / "benchmarks" / "results").glob("*.json"):
        content = json.loads(file.read_text())
        assert content.get("note", "") in PAGE.read_text(), file.name
        assert generator.kind(content) in {title for title, _, _ in generator.KINDS}, file.name


def test_every_program_and_every_result_is_named() -> None:
    """Programs are files that can be run: they end in a call of their own main."""
    page = PAGE.read_text()
    programs = {file.name for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text()}
    programs -= {"gpu.py"}  # gpu.sh runs it
    results = {file.name for file in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert {"learner.py", "learning.py"} <= programs and results
    missing = sorted(name for name in programs | results if f"`{name}`" not in page)
    assert not missing, f"docs/benchmarks.md does not name {missing}"
