"""Each failure that the monitor names happens here in a training; a sound training of the same task has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamer_torchrl.record.monitor import CHECKS
from tests.training.training_examples import lines, trained

ADVICE = {check.__name__: check.__doc__ for check in CHECKS}

BUTTON = (
    *("env=custom", "env.factory=tests.training.training_toys:Button", "eval.every=0", "log.every=0.02"),
    *("log.report=true", "total_steps=300", "train_ratio=8", "learner.warmup=10", "learner.learning_rate=1e-2"),
)
FAILURES = {
    "untrained_heads": (
        [
            "learner.reward_scale=0",
            "learner.continue_scale=0",
            "replay.capacity=40",
            "train_ratio=4",
            "total_steps=200",
        ],
        {"reward_head", "continue_head", "replay_capacity"},
    ),
    "nothing_to_learn": (
        [
            *("+env.arguments.deaf=true", "learner.free_nats=1000", "learner.entropy_scale=0"),
            *("learner.learning_rate=3e-2", "train_ratio=4", "replay.batch=8", "replay.length=2"),
        ],
        {"free_nats", "entropy", "sequence_length", "at_chance"},
    ),
    "few_updates": (
        ["learner.warmup=1000", "train_ratio=0.04", "total_steps=700"],
        {"few_updates", "idle_learner"},
    ),
}


def found(run: Path) -> list[str]:
    return [key.removeprefix("finding/") for line in lines(run) for key in line if key.startswith("finding/")]


def test_every_failure_is_provoked() -> None:
    assert set.union(*(names for _, names in FAILURES.values())) == set(ADVICE)


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_is_named_once(failure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the console, as a metric and in the report; not again when the run goes on."""
    words, expected = FAILURES[failure]
    run = trained(tmp_path / "run", *BUTTON, *words)
    names = found(run)
    assert expected <= set(names)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Monitor: ")]
    assert len(said) == len(names) == len(set(names))
    assert all(any(line.endswith(ADVICE[name]) for line in said) for name in names)
    page = (run / "report.html").read_text()
    assert [name for name in expected if ADVICE[name] not in page] == []
    steps = 10 + lines(run)[-1]["step"]
    trained(run, *BUTTON, *words, f"total_steps={steps}", "log.report=false")
    assert len(found(run)) == len(set(found(run)))


def test_a_sound_training_has_none(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *BUTTON)
    assert found(run) == [] and "None of the usual failures" in (run / "report.html").read_text()
    last = next(line for line in reversed(lines(run)) if "return/chance" in line)
    assert last["return/recent"] > 7 and last["return/chance"] < 7 and last["return/above_chance"] > 2
