"""Curves of runs: what is read of a file as it is being written, what goes into one median, and what others reached."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dreamer_torchrl.config.checks import leaves
from dreamer_torchrl.config.compose import Configuration, load, read_saved
from dreamer_torchrl.views.curves import SAME_EXPERIMENT, Curve, Run, group, over_seeds, read_run, smooth, thin
from dreamer_torchrl.views.references import known_results, official_curve


def run_at(folder: Path, *words: str, lines: Iterable[Mapping[str, Any]] = (), end: str = "") -> Run:
    """A run with this configuration and these lines, read back."""
    load([*words, f"run_dir={folder}"]).save(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return read_run(folder, read_saved(folder))


def pairs(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.x.tolist(), curve.y.tolist(), strict=True))


def test_a_metric_over_steps_frames_and_hours(tmp_path: Path) -> None:
    """Hours are known where training logs; between two of these, and from the start on, they go by the steps."""
    lines = [
        {"step": 100, "episode/return": 1.0},
        {"step": 200, "time/elapsed": 3600.0},
        {"step": 250, "episode/return": 2.0},
        {"step": 300, "time/elapsed": 10800.0},
        {"step": 310, "episode/return": 3},
    ]
    run = run_at(tmp_path / "run", "env=pendulum", "env.action_repeat=2", "seed=7", lines=lines)
    assert pairs(run.curve("episode/return")) == [(100, 1), (250, 2), (310, 3)]
    assert run.curve("episode/return", "frames").x.tolist() == [200, 500, 620]
    assert run.curve("episode/return", "hours").x.tolist() == [0.5, 2.0, 3.0]
    assert run.end("steps") == 310 and run.end("frames") == 620 and run.end("hours") == 3
    assert run.last("episode/return") == 3 and run.last("eval/return") is None
    assert len(run.curve("eval/return")) == 0
    assert run.metrics == ["episode/return", "time/elapsed"]
    assert (run.environment, run.seed) == ("Pendulum-v1", 7)


def test_a_file_that_is_being_written_or_damaged(tmp_path: Path) -> None:
    """Half a line at the end is no damage, one in the middle is, and both leave the rest as it is."""
    good = [{"step": 1, "eval/return": 5.0}, {"step": 2, "eval/return": None, "name": "word"}]
    run = run_at(tmp_path / "run", lines=good, end='{"step": 3, "eval')
    assert pairs(run.curve("eval/return")) == [(1, 5)]
    assert run.damaged == 0 and run.metrics == ["eval/return"]
    rest = '{"step": 3, "e\n[1]\n\xff\n{"eval/return": 1}\n{"step": 4, "eval/return": 6.0}\n'
    run = run_at(tmp_path / "run", lines=good, end=rest)
    assert pairs(run.curve("eval/return")) == [(1, 5), (4, 6)]
    assert run.damaged == 4


def test_a_run_without_metrics_is_empty(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    run = read_run(run.folder, run.values)
    assert run.metrics == [] and run.end() == 0 and len(run.curve("eval/return", "hours")) == 0


def test_a_run_that_went_back_counts_once(tmp_path: Path) -> None:
    """What was written after the place to which a run returned is forgotten, in every metric."""
    lines = [{"step": step, "a": step, **({"b": step} if step > 20 else {})} for step in (10, 20, 30, 40)]
    run = run_at(tmp_path / "run", lines=[*lines, {"step": 25, "a": -1}, {"step": 35, "b": -2}])
    assert pairs(run.curve("a")) == [(10, 10), (20, 20), (25, -1)]
    assert pairs(run.curve("b")) == [(35, -2)]


def test_runs_that_differ_by_seed_only_are_one_experiment(tmp_path: Path) -> None:
    runs = [
        run_at(tmp_path / "a", "env=pendulum", "seed=0"),
        run_at(tmp_path / "b", "env=pendulum", "seed=1", "total_steps=9000", "wandb.name=b", "eval.every=7"),
        run_at(tmp_path / "c", "env=cartpole"),
        run_at(tmp_path / "d", "env=pendulum", "train_ratio=33"),
        run_at(tmp_path / "e", "env=pendulum", "size=size1m"),
    ]
    first, other, ratio, size = group(runs)
    assert [run.folder.name for run in first.runs] == ["a", "b"] and first.count == "2 seeds"
    assert other.name == "CartPole-v1" and other.difference == "" and other.count == "1 seed"
    assert ratio.difference == "size=nano, train_ratio=33"
    assert size.name.startswith("Pendulum-v1 size=size1m, train_ratio=")
    assert group([runs[0], runs[0]])[0].count == "2 runs"


def test_a_setting_that_was_not_there_yet_is_as_its_null(tmp_path: Path) -> None:
    """Runs of an older version have no entry for what is new; one that chose something stays apart."""
    new = run_at(tmp_path / "new", "env=pendulum")
    old = Run(tmp_path, {key: value for key, value in new.values.items() if key != "native"})
    old.values["env"] = {key: value for key, value in new.values["env"].items() if key != "arguments"}
    chosen = run_at(tmp_path / "chosen", "env=pendulum", "native=false")
    together, apart = group([old, new, chosen])
    assert len(together.runs) == 2 and together.difference == ""
    assert apart.difference == "native=false"


def test_what_may_differ_within_an_experiment_are_settings() -> None:
    names = leaves(load([]).values)
    for setting in SAME_EXPERIMENT:
        assert any(name == setting or name.startswith(setting + ".") for name in names), setting


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"family": "gym", "id": "dreamer_torchrl/Memory-v0"}, "Memory-v0"),
        ({"family": "atari", "game": "pong", "sticky": True}, "atari:pong"),
        ({"family": "atari", "game": "pong", "sticky": False}, "atari100k:pong"),
        ({"family": "dmc", "task": "walker_walk", "image": True, "proprio": True}, "dmc:walker_walk"),
        ({"family": "custom", "factory": "my.envs:make"}, "my.envs:make"),
    ],
)
def test_names_of_environments(env: dict[str, Any], name: str) -> None:
    assert Run(Path(), {"env": env}).environment == name


def test_median_and_quartiles_over_seeds() -> None:
    """At places that all share there is nothing between the values and their quantiles."""
    x = np.array([0.0, 10.0, 20.0])
    band = over_seeds([Curve(x, np.array([0.0, 1.0, 2.0]) * factor) for factor in (1, 2, 3, 10)])
    assert band.x.tolist() == x.tolist() and band.runs.tolist() == [4, 4, 4]
    assert band.median.tolist() == [0, 2.5, 5]
    assert band.low.tolist() == [0, 1.75, 3.5] and band.high.tolist() == [0, 4.75, 9.5]


def test_a_run_counts_from_its_first_point_to_its_last() -> None:
    long = Curve(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
    short = Curve(np.array([5.0, 10.0]), np.array([105.0, 110.0]))
    band = over_seeds([long, short, Curve(np.empty(0), np.empty(0))])
    assert band.x.tolist() == [0, 5, 10, 20]
    assert band.runs.tolist() == [1, 2, 2, 1]
    assert band.median.tolist() == [0, 55, 60, 20]
    assert len(over_seeds([]).x) == 0


def test_many_points_become_few_and_keep_their_means() -> None:
    x = np.arange(100_000.0)
    few = thin(Curve(x, x % 2), 100)
    assert len(few) == 100 and np.allclose(few.y, 0.5)
    assert np.allclose(few.x, np.arange(499.5, 100_000, 1000), atol=1)
    assert pairs(thin(Curve(np.array([1.0, 1.0, 3.0]), np.array([2.0, 4.0, 5.0])))) == [(1, 3), (3, 5)]
    dense, sparse = Curve(x, x), Curve(np.array([0.0, 99_999.0]), np.array([0.0, 99_999.0]))
    band = over_seeds([dense, sparse], 50)
    assert len(band.x) == 50 and np.allclose(band.median[1:-1], band.x[1:-1])


def test_smoothing_keeps_a_line_and_levels_noise() -> None:
    line = Curve(np.arange(50.0), np.arange(50.0) * 3)
    assert np.allclose(smooth(line, 7).y[3:-3], line.y[3:-3])
    noise = Curve(line.x, np.where(line.x % 2 == 0, 1.0, -1.0))
    assert np.abs(smooth(noise, 11).y).max() < 0.2
    assert smooth(line, 1) is line


def test_the_official_curve_in_steps_and_only_as_far_as_asked() -> None:
    curve = official_curve("dmc_proprio:cartpole_swingup")
    assert (curve.x[4], curve.median[4]) == (50_000, 279.148)
    assert (curve.low <= curve.median).all() and (curve.median <= curve.high).all()
    steps = curve.until(30_000, frames_per_step=2)
    assert steps.x.tolist() == [5_000, 10_000, 15_000, 20_000, 25_000, 30_000]
    assert steps.median[4] == 279.148
    assert curve.until(10_000) is None
    assert official_curve("atari100k:pong").median[-1] == -3
    assert official_curve("CartPole-v1") is official_curve("dmc_vision:nothing") is None


def test_known_results() -> None:
    (car,) = known_results("CarRacing-v3")
    assert (car.mean, car.deviation, car.hours) == (817, 195, 9)
    (walker,) = known_results("dmc_proprio:walker_walk")
    assert walker.deviation is None and walker.label == "official code at 490k frames: 881"
    assert known_results("Nothing-v0") == []


def test_reading_needs_no_torch_and_no_drawing() -> None:
    program = "import sys, dreamer_torchrl.views.curves; print({'torch', 'matplotlib', 'hydra'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "set()"


def test_the_configuration_of_a_run_is_all_that_is_needed(tmp_path: Path) -> None:
    """Environments that are not installed here can be drawn all the same."""
    base = load([])
    values = base.values | {"env": {"family": "dmc", "task": "walker_walk", "image": False, "proprio": True}}
    Configuration(base.settings, values, []).save(tmp_path)
    assert read_run(tmp_path, read_saved(tmp_path)).environment == "dmc_proprio:walker_walk"
