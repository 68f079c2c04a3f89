"""Everything that the documentation shows is run here, so that none of it can go stale."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
PARTS = pkgutil.walk_packages([str(ROOT / "dreamer_torchrl")], "dreamer_torchrl.")
MODULES = ["dreamer_torchrl", *sorted(part.name for part in PARTS)]
DOCTEST_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page in one language, each with the place where its first line stands."""
    text = page.read_text()
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start(1)) + 1}", match[1]) for match in found]


EXAMPLES = [block for page in PAGES for block in blocks(page, "python")]
COMMANDS = [line for _, block in blocks(README, "bash") for line in block.splitlines()]


@pytest.mark.parametrize(("place", "code"), EXAMPLES, ids=[place for place, _ in EXAMPLES])
def test_example_runs(place: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block stands alone. Empty lines before it make an error point at the line of the page."""
    monkeypatch.chdir(tmp_path)
    name, line = place.rsplit(":", 1)
    exec(compile("\n" * (int(line) - 1) + code, str(ROOT / name), "exec"), {"__name__": "__main__"})


def test_readme_has_an_example() -> None:
    """The parametrized test above would pass silently on none."""
    assert blocks(README, "python")


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    """The examples in a module's docstrings print what they say; pytest shows the differences."""
    outcome = doctest.testmod(importlib.import_module(name), optionflags=DOCTEST_FLAGS)
    assert not outcome.failed, f"{outcome.failed} of {outcome.attempted} docstring examples in {name} fail: see above"


def test_public_modules_have_an_example() -> None:
    """Each part can be used alone, and its docstring shows how."""
    modules = importlib.import_module("dreamer_torchrl.modules")
    parts = [part for part in map(modules.__dict__.get, modules.__all__) if inspect.isclass(part)]
    silent = [part.__name__ for part in parts if issubclass(part, nn.Module) and ">>>" not in (part.__doc__ or "")]
    assert not silent, f"no example in the docstrings of {silent}: add one"


def test_readme_install_and_test_commands_are_those_of_ci() -> None:
    """The one line that installs and tests, without the virtual environment, stands in .ci/run word for word."""
    (line,) = (command for command in COMMANDS if "pytest" in command)
    promised = [step for step in line.split(" && ") if step.startswith(("pip ", "python "))]
    run_by_ci = (ROOT / ".ci/run").read_text().splitlines()
    assert len(promised) == 2
    assert [step for step in run_by_ci if step in promised] == promised


def programs() -> list[list[str]]:
    """What stands behind the installation in each line, but the tests themselves."""
    found = [shlex.split(command.split(" && ")[-1]) for command in COMMANDS if "pytest" not in command]
    assert all(program == "python" for program, *_ in found)
    return [[sys.executable, *arguments] for _, *arguments in found]


def test_readme_first_command_trains(tmp_path: Path) -> None:
    """It says something at once, updates within a minute, and SIGTERM ends it with exit code 0 and a way to go on."""
    command = programs()[0]
    assert command[1:] == ["-m", "dreamer_torchrl.train"]
    unbuffered = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=unbuffered)
    lines = []
    for line in process.stdout:
        if "losses" in line and not any("losses" in earlier for earlier in lines):
            process.send_signal(signal.SIGTERM)
        lines.append(line)
    assert process.wait(60) == 0, "".join(lines)
    assert "CartPole-v1" in lines[0]
    assert "python -m dreamer_torchrl.train run_dir=" in lines[-1]


@pytest.mark.parametrize("command", programs()[1:], ids=" ".join)
def test_readme_command_runs(command: list[str]) -> None:
    """The program at the end of each other line does its work in this environment."""
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, f"{command}\n{outcome.stdout}\n{outcome.stderr}"


def test_readme_layout_exists() -> None:
    """Every file and folder in the layout is there."""
    layout = next(text for _, text in blocks(README, "text") if text.startswith("dreamer_torchrl/"))
    paths = [line.split()[0] for line in layout.splitlines()]
    assert paths
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing, f"README.md lists {missing}, which do not exist"
