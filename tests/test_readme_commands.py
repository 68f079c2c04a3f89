"""Every command that README.md shows is typed here, with numbers that end it soon."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import README, blocks
from tests.test_train_command import TINY

SMALL = [*TINY, "train_ratio=1", "total_steps=24", "replay.capacity=1000", "eval.every=0"]
ANSWERS = {
    "env.factory=package.module:function": "env.factory=dreamer_torchrl.envs.tasks:Memory",
    "run_dir=RUN": "run_dir={run} total_steps=60",
    "RUN": "{run}",
}
"""What a reader puts in the place of these words."""

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
