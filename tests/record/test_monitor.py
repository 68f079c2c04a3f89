"""What the monitor concludes from records: at the limit of each criterion, and where records are missing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dreamer_torchrl.record.monitor import CHANCE, FLOOR, LEARNER, RANDOMNESS, WINDOW, Monitor, findings
from dreamer_torchrl.training.progress import CHANCE_UPDATES, PREFILLED, Progress

VALUES: dict[str, Any] = {
    **{"total_steps": 10_000, "train_ratio": 128, "prefill": 0},
    "replay": {"capacity": 1_000_000, "batch": 16, "length": 16},
    "learner": {"learning_rate": 1e-3, "warmup": 1000, "free_nats": 1.0, "dynamics_scale": 1.0},
}
SOUND = {
    **{"step": 7_000, "count/updates": 3_400, "count/episodes": 140},
    **{"train/reward_error": 0.1, "train/reward_variance": 0.2, "train/loss_dynamics": 1.5, "train/randomness": 0.3},
    **{"train/continue_error": 0.02, "train/continue_variance": 0.02, "share/learner": 0.8, "share/collector": 0.1},
    **{"return/above_chance": 5.0, "return/chance": 20.0, "return/recent": 100.0},
}
LOW = {"return/above_chance": 0.99 * CHANCE}
EARLY = {"step": 2_000}  # too early to say that returns are at chance


def named(changes: dict[str, Any], count: int = WINDOW, **values: Any) -> list[str]:
    return [finding.name for finding in findings(VALUES | values, [SOUND | changes] * count)]


@pytest.mark.parametrize(
    ("name", "beyond", "within"),
    [
        ("reward_head", {"train/reward_error": 0.201}, {"train/reward_error": 0.199}),
        ("reward_head", {"train/reward_variance": 0.09}, {"train/reward_variance": 0.0}),
        ("free_nats", {"train/loss_dynamics": FLOOR, **LOW, **EARLY}, {"train/loss_dynamics": 1.002, **LOW, **EARLY}),
        ("free_nats", {"train/loss_dynamics": 1.0, **LOW, **EARLY}, {"train/loss_dynamics": 1.0}),
        ("entropy", {"train/randomness": 0.9 * RANDOMNESS, **LOW, **EARLY}, {"train/randomness": 0.0}),
        ("continue_head", {"train/continue_error": 0.0261}, {"train/continue_error": 0.0259}),
        (
            "continue_head",
            {"train/continue_error": 0.002, "train/continue_variance": 0.0},
            {"train/continue_error": 0.0},
        ),
        ("at_chance", LOW, {**LOW, **EARLY}),
        (
            "idle_learner",
            {"share/learner": 0.01, "share/collector": 0.9},
            {"share/learner": 0.01, "share/collector": 0.2},
        ),
        ("idle_learner", {"share/learner": LEARNER - 0.01, "share/collector": 0.9}, {"share/collector": 0.9}),
    ],
)
def test_limits(name: str, beyond: dict[str, Any], within: dict[str, Any]) -> None:
    assert named({}) == []
    assert (named(beyond), named(within)) == ([name], [])


def test_replay_and_updates_are_compared_with_episodes_and_warm_up() -> None:
    small = {"replay": VALUES["replay"] | {"capacity": 400}}  # 8 episodes of 50 steps
    assert named({}, **small) == ["replay_capacity"] and named({"count/episodes": 200}, **small) == []
    assert named({}, **small, total_steps=400) == []
    assert named(LOW | {"count/episodes": 100}) == ["sequence_length", "at_chance"]
    assert named({"count/updates": 10}, train_ratio=84) == ["few_updates"]  # 10 and 3,000 steps / 256 * 84 = 984
    (finding,) = findings(VALUES | {"train_ratio": 84}, [SOUND | {"count/updates": 10}])
    assert "has 994 updates" in finding.text and "train_ratio=85, or more total_steps" in finding.text
    assert named({"count/updates": 10}, train_ratio=85) == []
    assert "give more total_steps" in findings(VALUES, [SOUND | {"step": 10_000, "count/updates": 9}])[0].text


def test_nothing_is_concluded_from_too_little() -> None:
    wrong = {"train/reward_error": 9.0, "train/continue_error": 0.9, **LOW}
    assert named(wrong) == ["reward_head", "continue_head", "at_chance"]
    assert named(wrong, WINDOW - 1) == [] and named({**wrong, "count/updates": 1_100}) == []
    assert named({**wrong, "count/updates": 0}) == [] and findings(VALUES, []) == []
    assert named({key: None for key in SOUND if "/" in key and key != "count/updates"}) == []
    assert [each.name for each in findings(VALUES, [{"step": 3, "count/updates": 3_400}] * WINDOW)] == []


def test_each_kind_is_said_once() -> None:
    monitor = Monitor(VALUES)
    said = [(count, finding.name) for count in range(1, 3 * WINDOW) for finding in monitor.new(SOUND | LOW)]
    assert said == [(WINDOW, "at_chance")]


def test_chance_is_what_the_first_episodes_return() -> None:
    """Those before the first update, or a few soon after it; their mean is compared with that of the newest."""
    progress = Progress()
    for number in range(150):
        progress.add_episode(float(number % 2))
    assert len(progress.chance) == PREFILLED
    assert progress.compared() == {"return/chance": 0.5, "return/recent": 0.5, "return/above_chance": 0.0}
    progress = Progress(updates=1)
    for number in range(60):
        progress.add_episode(float(number >= 20) + number % 2)
    error = math.sqrt(0.25 * 20 / 19 / 20 + 0.25 * 40 / 39 / 40)
    assert progress.compared()["return/above_chance"] == pytest.approx(1 / error)
    late = Progress(updates=CHANCE_UPDATES + 1)
    for _ in range(60):
        late.add_episode(1.0)
    assert late.chance == [] and late.compared() == {}
