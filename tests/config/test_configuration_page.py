"""The page of all settings is what its generator makes, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.config.checks import as_plain, leaves
from dreamer_torchrl.config.schema import EnvironmentSettings, Settings

DOCS = Path(__file__).parents[2] / "docs"


def program_of_docs(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    return program_of_docs("make_configuration")


def rows(page: str) -> dict[str, list[str]]:
    """The cells of every row by what stands in its first one, or second one where a family of environments is first."""
    lines = [line.removeprefix("| ").removesuffix(" |") for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return {next(cell for cell in row if "`" in cell).strip("`"): row for row in cells if "`" in "".join(row)}


def test_page_is_up_to_date(generator: ModuleType) -> None:
    assert (DOCS / "configuration.md").read_text() == generator.page(), "run: python docs/make_configuration.py"


def test_every_setting_has_its_default_and_a_meaning(generator: ModuleType) -> None:
    settings = Settings("", EnvironmentSettings("gym", {}), Size.named("nano"))
    names = {name.replace("_part", "") for name in leaves(as_plain(settings))} - {"env.family", "env.options"}
    found = rows(generator.page())
    assert names <= set(found)
    silent = [name for name in names if not found[name][2 if name.startswith("size.") else 3]]
    assert not silent, f"say behind {sorted(silent)} in configs/ what they mean"
    assert found["learner.horizon"][1] == "`100`" and found["env.workers"][2] == "serial, processes"


def test_every_own_setting_of_an_environment_has_a_meaning(generator: ModuleType) -> None:
    table = generator.environment_tables().partition("### What each family")[2].partition("### All")[0]
    found = rows(table)
    assert {"env.id", "env.game", "env.task", "env.factory"} <= set(found)
    assert all(row[3] for row in found.values()), found
