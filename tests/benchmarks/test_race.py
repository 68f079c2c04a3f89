"""Trainings of several systems on the same recorded environments, their curves and pictures."""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.conftest import Program

PLAY = """
import gymnasium, race_tasks
env = gymnasium.make("race/cartpole-v0")
for seed in range(3):
    env.reset(seed=seed)
    while not any(env.step(0)[2:4]):
        pass
"""

HANG = """
import os, time
with open(os.environ["RACE_EPISODES"], "w") as file:
    file.write(f"{time.time()} 5 5")
time.sleep(600)
"""


@pytest.fixture
def race() -> ModuleType:
    return import_module("race")


def run_of(race: ModuleType, system: str, seed: int = 0, **changes: object) -> object:
    words = dict.fromkeys(["versions", "commit", "date", "machine", "settings", "command"], "some, words")
    given = {"task": "cartpole", "minutes": 2, "ended": 2.0, "frames": 90, "episodes": 9, "last": 10.0, **words}
    return race.Race(system=system, seed=seed, **{**given, **changes})


def test_our_training_is_recorded(race: ModuleType, tmp_path: Path) -> None:
    small = "threads=1 size.belief=32 size.hidden=16 size.units=16 replay.batch=2 replay.length=4".split()
    (ours,) = race.contestants("pendulum", [], 3)
    command = [word for word in ours.command if not word.startswith("total_steps")]
    ours = replace(
        ours, command=(*command, "total_steps=204", "train_ratio=1", "env.num_envs=2", "log.report=false", *small)
    )
    ended, lines = race.train(ours, sys.executable, 2, tmp_path / "run")
    assert 0 < ended < 2 and len(lines) == 2, (tmp_path / "run" / "output.txt").read_text()
    assert lines[-1]["count/frames"] == 2 * 200 and all(-2000 < line["episode/return"] < 0 for line in lines)
    assert race.action_repeat(tmp_path / "run") == 2
    assert 0 < lines[0]["time/elapsed"] <= lines[1]["time/elapsed"] <= 60 * ended


def test_a_system_is_ended_when_its_minutes_are_over(race: ModuleType, tmp_path: Path) -> None:
    toy = race.System("toy", (), ("-c", PLAY))
    ended, lines = race.train(toy, sys.executable, 1, tmp_path / "plays")
    assert len(lines) == 3 and ended < 1 and 0 < lines[0]["time/elapsed"] <= lines[-1]["time/elapsed"] <= ended * 60
    toy = replace(toy, command=("-c", HANG))
    start = time.monotonic()
    ended, lines = race.train(toy, sys.executable, 0.05, tmp_path / "hangs")
    assert ended == 0.05 and len(lines) == 1 and time.monotonic() - start < 60
    with pytest.raises(race.Failure, match=r"toy finished no episode in 1 minutes; its messages are in .*output\.txt"):
        race.train(replace(toy, command=("-c", "")), sys.executable, 1, tmp_path / "idle")
    with pytest.raises(race.Failure, match=r"toy ended with exit code 7; its messages are in .*output\.txt"):
        race.train(replace(toy, command=("-c", "exit(7)")), sys.executable, 1, tmp_path / "fails")


def test_episodes_after_the_end_do_not_count(race: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "episodes.txt").write_text("1006.000 10 10\n1030.000 20 -3.5\n1060.001 30 30\n")
    lines = race.episode_lines(tmp_path / "episodes.txt", 1000, 1)
    assert [(line["count/frames"], line["time/elapsed"], line["episode/return"]) for line in lines] == [
        (10, 6.0, 10.0),
        (30, 30.0, -3.5),
    ]
    rows = race.curve(lines, points=3)
    assert [(row["frames"], row["minutes"], row["training"]) for row in rows] == [(10, 0.1, "10"), (30, 0.5, "-3.5")]
    assert race.episode_lines(tmp_path / "none.txt", 1000, 1) == []


def test_a_later_training_replaces_an_earlier_one_and_all_are_drawn(
    race: ModuleType, program: Program, tmp_path: Path
) -> None:
    rows = [
        {"step": n, "frames": n, "minutes": n / 100, "training": str(n), "evaluation": ""} for n in range(20, 100, 20)
    ]
    for run in (run_of(race, "sb3-ppo"), run_of(race, "dreamer_torchrl"), run_of(race, "sb3-ppo", frames=80)):
        race.write(run, rows, 2, tmp_path)
    found = race.read_rows(tmp_path / "races.csv", race.Race)
    frames = {run.system: run.frames for run in found}
    assert frames == {"dreamer_torchrl": 90, "sb3-ppo": 80} and len(found) == 2
    written = list(csv.DictReader((tmp_path / "cartpole-sb3-ppo-0.csv").read_text().splitlines()))
    assert written[1] == {"step": "20", "frames": "40", "minutes": "0.4", "training": "40"}
    rows = [{"minutes": str(n), "training": str(10 * n)} for n in range(7)]
    assert race.smoothed(rows) == ([0, 1, 2, 3, 4, 5, 6], [0, 5, 10, 15, 20, 30, 40])
    program("race", "--draw", "--results", tmp_path)
    assert (tmp_path / "cartpole.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.glob("*.png"))) == 1


def test_systems_are_chosen_by_family_or_name(race: ModuleType, program: Program) -> None:
    def names(task: str, *against: str) -> list[str]:
        return [system.name for system in race.contestants(task, list(against), 0)]

    assert names("cartpole") == ["dreamer_torchrl"]
    assert names("cartpole", "sb3") == ["dreamer_torchrl", "sb3-ppo", "sb3-dqn"]
    assert names("pendulum", "torchrl-pendulum", "sheeprl") == [
        *("dreamer_torchrl", "sheeprl-size1m", "sheeprl-xs"),
        "torchrl-pendulum",
    ]
    with pytest.raises(SystemExit, match=r"--against sb3-sac: on grid_reach there are sheeprl, torchrl, sb3, "):
        names("grid_reach", "sb3-sac")
    with pytest.raises(SystemExit, match="Other systems need --python"):
        program("race", "--against", "sb3")


def test_what_an_interpreter_lacks_is_named(race: ModuleType) -> None:
    assert race.versions(sys.executable, ("hydra-core",))["hydra-core"].startswith("1.")
    with pytest.raises(SystemExit, match=r"lacks no-such-peer: .* -m pip install no-such-peer"):
        race.versions(sys.executable, ("torch", "no-such-peer"))
    with pytest.raises(SystemExit, match="--python /none does not run"):
        race.versions("/none", ())
