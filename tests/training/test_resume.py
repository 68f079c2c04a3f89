"""A run that was interrupted, in any way, ends as one that never was."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from dreamer_torchrl import train
from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.learners.learner import Learner
from tests.training.training_examples import assert_same_run, episodes, lines, trained, words

EVALUATED = ("eval.every=20", "train_ratio=32")
"""Two updates a step, and evaluations on the way."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    return trained(tmp_path_factory.mktemp("whole") / "run", *EVALUATED, "total_steps=24")


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, number: int, which: signal.Signals) -> None:
    """Let this process get a signal at the end of a certain call of a method."""
    function: Callable[..., Any] = getattr(owner, method)
    calls = 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        result = function(*arguments)
        calls += 1
        if calls == number:
            os.kill(os.getpid(), which)
            time.sleep(0.2)  # a thread takes note of it
        return result

    monkeypatch.setattr(owner, method, counted)


def resume_words(printed: str) -> list[str]:
    """What the program said how to continue."""
    command = re.search(r"Continue with: python -m dreamer_torchrl\.train (.+)", printed)
    assert command, printed
    return shlex.split(command[1])


def test_two_runs_with_one_seed_are_the_same(whole: Path, tmp_path: Path) -> None:
    """Also after a process that was killed before its first checkpoint; with another seed it is another run."""
    (tmp_path / "twin").mkdir()
    (tmp_path / "twin/metrics.jsonl").write_text('{"step": 3, "episode/return": 9.0}\n{"step": 1')
    twin = trained(tmp_path / "twin", *EVALUATED, "total_steps=24")
    assert_same_run(whole, twin)
    assert episodes(whole) == episodes(twin)
    assert [line["step"] for line in episodes(whole) if "eval/return" in line] == [20, 24]
    other = trained(tmp_path / "other", *EVALUATED, "total_steps=12", "seed=1")
    assert episodes(other)[0] != episodes(whole)[0]


def test_a_longer_run_goes_on_from_a_finished_one(whole: Path, tmp_path: Path) -> None:
    """One more evaluation, at the end of the shorter one, changes nothing."""
    run = trained(tmp_path / "run", *EVALUATED, "total_steps=22")
    trained(run, *EVALUATED, "total_steps=24")
    assert_same_run(whole, run)
    assert [line for line in episodes(run) if line["step"] != 22] == episodes(whole)


@pytest.mark.parametrize(
    ("owner", "method", "number", "which", "code"),
    [
        (Learner, "update", 17, signal.SIGINT, 130),  # one of the two that the last step earned
        (StreamEnvs, "_step", 25, signal.SIGTERM, 0),  # in the middle of an evaluation: 20 are training's
    ],
)
def test_a_signal_is_no_break(
    owner: type,
    method: str,
    number: int,
    which: signal.Signals,
    code: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The update is finished, all is saved, and the command that is printed goes on from there."""
    run = tmp_path / "a run"
    with monkeypatch.context() as patch:
        interrupt(patch, owner, method, number, which)
        assert train.main(words(run, *EVALUATED, "total_steps=24")) == code
    printed = capsys.readouterr().out
    assert f"{which.name}: finishing this update and saving" in printed
    progress = Checkpoints(run / "checkpoints").load().parts["progress"]
    if owner is Learner:
        assert progress["updates"] == number and progress["credit"] == 1
    else:
        assert progress["steps"] == 20 and progress["evaluated"] == 0
    assert train.main(resume_words(printed)) == 0
    assert_same_run(whole, run)
    assert episodes(run) == episodes(whole)


def test_an_environment_that_does_not_come_back_ends_its_episode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows other things after the same seed and actions: the log says so, and the episode is cut off."""
    custom = ("env=custom", "env.factory=tests.training.training_toys:Unseeded", "eval.every=0")
    run = trained(tmp_path / "run", *custom, "total_steps=30")  # episodes have 12 steps: the third is not finished
    trained(run, *custom, "total_steps=60")
    assert "Environment 0 did not come back to where it was" in capsys.readouterr().out
    lengths = [line["episode/length"] for line in lines(run) if "episode/length" in line]
    assert lengths == [12, 12, 4, 12, 12]  # 13 steps and 13 steps, and then 5


def test_a_signal_gives_up_an_environment_that_hangs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Within ten seconds. All that came before is saved, and the run goes on as if nothing had been."""
    custom = ("env=custom", "env.factory=tests.training.training_toys:Faulty", "eval.every=0", "total_steps=30")
    custom += ("+env.arguments.fault=hang", "+env.arguments.share=0.15")
    reached, run = tmp_path / "reached", tmp_path / "run"
    sent: list[float] = []

    def terminate() -> None:
        while not reached.exists():
            time.sleep(0.02)
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=terminate, daemon=True).start()
    assert train.main(words(run, *custom, f"+env.arguments.only_once={reached}")) == 0
    assert time.monotonic() - sent[0] < 10
    assert re.search(r"Stopped and saved at step [1-9]", capsys.readouterr().out)
    trained(run, *custom, f"+env.arguments.only_once={reached}")
    assert_same_run(run, trained(tmp_path / "twin", *custom, f"+env.arguments.only_once={reached}"))


def test_a_real_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it hangs in its environment, a second process is told who it is, and a second Ctrl-C ends it at once."""
    hanging = ("env=custom", "env.factory=tests.training.training_toys:Faulty", "+env.arguments.fault=hang")
    run, reached = tmp_path / "run", tmp_path / "reached"
    hanging += ("+env.arguments.share=1", f"+env.arguments.only_once={reached}")
    command = [sys.executable, "-m", "dreamer_torchrl.train", *words(run, *hanging)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not reached.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert train.main(words(run, *hanging)) == 1
        assert f"process {process.pid}" in capsys.readouterr().err
        process.send_signal(signal.SIGINT)
        assert any(line.startswith("SIGINT: finishing this update") for line in process.stdout)
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        assert process.wait(60) == 130
        assert time.monotonic() - start < 20
    finally:
        process.kill()
        process.wait()
    assert Checkpoints(run / "checkpoints").load() is None
