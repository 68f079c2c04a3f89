"""Every command that README.md shows is typed here, with numbers that end it soon."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamer_torchrl.config.compose import choices
from tests.test_docs import README, blocks
from tests.test_train_command import TINY

SMALL = [*TINY, "train_ratio=1", "total_steps=24", "replay.capacity=1000", "eval.every=0"]
ANSWERS = {
    "env.factory=package.module:function": "env.factory=dreamer_torchrl.envs.tasks:Memory",
    "run_dir=RUN": "run_dir={run} total_steps=60",
    "RUN": "{run}",
}
"""What a reader puts in the place of these words."""

IN_TABLES = re.compile(r"`(?:\w+=\w+ )?(python benchmarks/[^`]+)`")
MEASURING = sorted(set(IN_TABLES.findall(README.read_text())))
LEARNING = "python benchmarks/learning.py --experiment NAME"
SOON = "--batch 1 --length 2 --updates 1 --warmup 0"
ON_OTHER_PAGES = {
    line for page in ("speed", "presets") for line in IN_TABLES.findall((README.parent / f"docs/{page}.md").read_text())
}
LINES = [line for _, text in blocks(README, "text") for line in text.splitlines() if line.startswith("python ")]


def command_of(line: str) -> list[str]:
    """What is typed, without the explanation after two spaces."""
    words = shlex.split(re.split(r"\s{2,}", line)[0])
    return [answer for word in words for answer in ANSWERS.get(word, word).split()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as the first command makes it."""
    folder = tmp_path_factory.mktemp("readme") / "run"
    train = [sys.executable, "-m", "dreamer_torchrl.train", *SMALL, "total_steps=40", f"run_dir={folder}"]
    subprocess.run(train, check=True, capture_output=True, cwd=folder.parent)
    return folder


def test_there_are_commands() -> None:
    """The parametrized test below would pass silently on none."""
    assert {re.search(r"dreamer_torchrl\.(\w+)", line)[1] for line in LINES} == {
        *("train", "evaluate", "plot", "dream", "report", "export", "doctor")
    }
    assert len(MEASURING) >= 5


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.split()[2:6]))
def test_command(line: str, run: Path, tmp_path: Path) -> None:
    """It ends well. A preset's own numbers are too long for a test, all else is as it stands there."""
    words = [sys.executable, *command_of(line)[1:]]
    words = [word.format(run=run) for word in words]
    if "dreamer_torchrl.train" in words and "list" not in words and f"run_dir={run}" not in words:
        named = any(word.startswith("experiment=") for word in words)
        words += [word for word in SMALL if not (named and word.startswith("experiment="))]
    outcome = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, f"{line}\n{outcome.stdout}\n{outcome.stderr}"
    assert "[torchrl]" not in outcome.stdout + outcome.stderr  # what a library tells itself is none of a user's


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Runs a line with a program of the benchmarks as if it were typed."""

    def run(line: str) -> None:
        _, program, *words = shlex.split(line)
        monkeypatch.syspath_prepend(str(README.parent / Path(program).parent))
        monkeypatch.setattr(sys, "argv", [program, *words])
        runpy.run_path(str(README.parent / program), run_name="__main__")

    return run


@pytest.mark.parametrize("line", [line for line in MEASURING if line != LEARNING])
def test_programs_of_the_tables(
    line: str, program: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a small batch; sheeprl is no package of ours, so what answers in its place is a toy."""
    toy = README.parent / "tests/benchmarks/toy_peer.py"
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(toy))} 99\n")
    python.chmod(0o755)
    program(f"{line} {SOON}".replace("PEER", str(tmp_path)))
    printed = capsys.readouterr().out
    assert "ratio" in printed and re.search(r"torchrl [\d.]+ eager|toy", printed)


def test_the_program_of_the_results_is_there() -> None:
    """`test_learning_benchmark` runs it to its end."""
    assert LEARNING in MEASURING


class WordsTaken(Exception):
    """A program has understood its words, and would begin to measure."""


@pytest.mark.parametrize("line", sorted(ON_OTHER_PAGES - set(MEASURING)))
def test_programs_of_other_pages_understand_their_words(
    line: str, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that measure take minutes, so only until their words are read."""
    understand = ArgumentParser.parse_args

    def stop_then(parser: ArgumentParser) -> None:
        understand(parser)
        raise WordsTaken

    monkeypatch.setattr(ArgumentParser, "parse_args", stop_then)
    with pytest.raises(WordsTaken):
        program(line)


def test_experiments_of_the_table_are_there() -> None:
    table = README.read_text().partition("| experiment |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert len(named) >= 5 and set(named) <= set(choices("experiment"))
