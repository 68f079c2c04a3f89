"""Short trainings from the command to metrics, a checkpoint, an evaluation and an agent that plays."""

from __future__ import annotations

from pathlib import Path

import pytest

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.config.compose import load as configured
from dreamer_torchrl.training.progress import Progress
from tests.training.training_examples import lines, trained

KINDS = {
    "continuous": ["env=pendulum", "env.action_repeat=10"],
    "image": ["env=grid_reach"],
    "composite": ["env=custom", "env.factory=tests.training.training_toys:Drive"],
    "async": ["env=cartpole", "env.num_envs=2", "env.workers=processes", "collector=async"],
    "multi_sync": ["env=cartpole", "env.num_envs=2", "collector=multi_sync"],
}


@pytest.mark.parametrize("kind", [*list(KINDS)[:-1], pytest.param("multi_sync", marks=pytest.mark.slow)])
def test_it_trains(kind: str, tmp_path: Path) -> None:
    total = 40
    run = trained(tmp_path / "run", *KINDS[kind], f"total_steps={total}")
    measured = lines(run)
    assert all(0 < line["step"] <= total for line in measured)
    assert all({"step", "episode/length"} <= set(line) for line in measured if "episode/return" in line)
    (evaluation,) = (line for line in measured if "eval/return" in line)
    assert evaluation["step"] == total and evaluation["eval/episodes"] == 2
    last = measured[-1]
    # 4 replayed steps per step and 16 in a batch, from the 16th step on.
    first = 17 if "num_envs=2" not in str(KINDS[kind]) else 18
    assert last["count/updates"] == pytest.approx((total - first + 1) / 4, abs=1.01)
    assert last["count/updates_skipped"] == 0 and last["count/environment_failures"] == 0
    assert last["train/loss_actor"] is not None
    saved = Checkpoints(run / "checkpoints").load()
    assert saved.step == total and saved.damaged == []
    assert saved.parts["progress"]["updates"] == last["count/updates"]


def test_intervals_frames_and_repeated_actions(tmp_path: Path) -> None:
    """With log.every=0 each step has its line; frames count the repeats."""
    run = trained(tmp_path / "run", "env.action_repeat=2", "log.every=0", "total_steps=20", "eval.every=0")
    measured = lines(run)
    intervals = [line for line in measured if "rate/steps_per_second" in line]
    assert [line["step"] for line in intervals] == [*range(1, 21), 20]
    assert all(line["count/frames"] == 2 * line["step"] for line in measured)
    shares = [[value for key, value in line.items() if key.startswith("share/")] for line in intervals]
    assert all(len(each) == 5 and sum(each) == pytest.approx(1, abs=0.05) for each in shares)
    assert not any("eval/return" in line for line in measured) and not (run / "report.html").exists()


def test_evaluations_come_when_they_are_due() -> None:
    """At the first step at or after each multiple, but not before the first update, and once at the end."""
    for overrides, expected in (("replay.length=2", [21, 42, 51]), ("prefill=30", [42, 51]), ("prefill=99", [51])):
        words = ["eval.every=20", "total_steps=50", "replay.batch=1", "prefill=0", *overrides.split()]
        settings, progress, due = configured(words).settings, Progress(), []
        for progress.steps in range(0, 54, 3):
            if progress.evaluation_is_due(settings):
                due.append(progress.steps)
                progress.evaluated = progress.steps
        assert due == expected


def test_it_stops_where_it_is_good_enough(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "eval.every=20", "eval.stop_at=-1000")
    assert [line["step"] for line in lines(run) if "eval/return" in line] == [20]
    assert Checkpoints(run / "checkpoints").load().step == 20
    again = lines(run)
    trained(run)
    assert lines(run) == again  # it stays solved
    trained(run, "eval.stop_at=null")
    assert Checkpoints(run / "checkpoints").load().step == 60
