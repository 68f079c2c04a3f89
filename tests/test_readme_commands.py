"""Every command on README.md and in the tables of other pages runs, with settings that end it soon."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path

import pytest

from dreamer_torchrl.config.compose import load
from tests.test_docs import PAGES, README, ROOT, blocks
from tests.training.training_examples import trained, words

PLACEHOLDERS = {
    "env.factory=package.module:function": "env.factory=dreamer_torchrl.envs.tasks:Memory",
    "run_dir=RUN": "run_dir={run} total_steps=60",
    "RUN": "{run}",
    "offline=PATH": "offline={run}",
    "pretrained:cartpole": "pretrained:cartpole --episodes 2",
}
LINES = [line for _, text in blocks(README, "text") for line in text.splitlines() if line.startswith("python ")]
SHELL = [line.split(" && ")[-1] for _, text in blocks(README, "bash") for line in text.splitlines()]
IN_TEXT = re.compile(r"`(?:\w+=\w+ )?(python benchmarks/[^`]+)`")
BENCHMARKS = {line for page in PAGES for line in IN_TEXT.findall(page.read_text())}
BENCHMARKS = sorted(BENCHMARKS - {"python benchmarks/leaderboard.py"})  # which takes no arguments


def call(line: str) -> int:
    """Run ``python -m dreamer_torchrl.NAME ...`` in this process."""
    _, _, module, *arguments = shlex.split(line)
    try:
        return importlib.import_module(module).main(arguments) or 0
    except SystemExit as end:
        return end.code or 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("readme") / "run", "env=cartpole", "total_steps=40", "eval.every=0")


def test_every_command_of_the_package_is_shown() -> None:
    shown = {re.search(r"dreamer_torchrl\.(\w+)", line)[1] for line in LINES}
    assert shown == {"train", "evaluate", "plot", "dream", "report", "export", "doctor"}
    assert len(BENCHMARKS) >= 15


@pytest.mark.parametrize("line", LINES, ids=lambda line: " ".join(line.split()[2:6]))
def test_command(line: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends well. Sizes and lengths are those of a test, all else is as on the page.

    What `dream` and `export` make of an agent that is no run of this machine goes to the present folder.
    """
    if "--multirun" in line:
        pytest.skip("tests of sweeps start their processes")
    monkeypatch.chdir(tmp_path)
    made = {"dreamer_torchrl.dream": "dreams/cartpole.png", "dreamer_torchrl.export": "policy.pt2"}.get(line.split()[2])
    shown = "pretrained:cartpole" if made else run
    typed = [PLACEHOLDERS.get(word, word).format(run=shown) for word in re.split(r"\s{2,}", line)[0].split()]
    if "dreamer_torchrl.train" in typed and "list" not in typed and "RUN" not in line:
        named = any(word.startswith("experiment=") for word in typed)
        short = words(tmp_path / "run", "total_steps=24", "train_ratio=1", "replay.capacity=1000", "eval.every=0")
        short += ["offline_updates=3"]
        typed += [word for word in short if not (named and "experiment=" in word)]
    assert call(" ".join(typed)) == 0
    assert made is None or (tmp_path / made).is_file()


@pytest.mark.slow
def test_the_recording_of_readme_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert "interop.verify" in SHELL[-1] and call(SHELL[-1]) == 0


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def run(line: str) -> None:
        _, program, *arguments = shlex.split(line)
        monkeypatch.syspath_prepend(str(ROOT / Path(program).parent))
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        runpy.run_path(str(ROOT / program), run_name="__main__")

    return run


class ArgumentsRead(Exception):
    """A program has accepted its arguments and would begin to measure."""


@pytest.mark.parametrize("line", BENCHMARKS)
def test_benchmarks_accept_the_arguments_of_the_pages(
    line: str, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = ArgumentParser.parse_args

    def stop_after(parser: ArgumentParser) -> None:
        parse(parser)
        raise ArgumentsRead

    monkeypatch.setattr(ArgumentParser, "parse_args", stop_after)
    with pytest.raises(ArgumentsRead):
        program(line.replace("NAME", "cartpole"))


def test_commands_of_the_table_are_understood() -> None:
    commands = [
        score.command for score in importlib.import_module("scores").read_scores() if score.experiment == "laptop"
    ]
    for command in commands:
        assert load(command.split()[3:]).settings.env.options
