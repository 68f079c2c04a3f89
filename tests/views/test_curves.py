"""Curves of runs: what is read of a file as it is being written, which runs are one experiment, median over seeds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dreamer_torchrl.config.checks import leaves
from dreamer_torchrl.config.compose import load, read_saved
from dreamer_torchrl.views.curves import SAME_EXPERIMENT, Curve, Run, group, over_seeds, read_run, thin


def run_at(folder: Path, *overrides: str, lines: Iterable[Mapping[str, Any]] = (), end: str = "") -> Run:
    load([*overrides, f"run_dir={folder}"]).save(folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + end)
    return read_run(folder, read_saved(folder))


def pairs(curve: Curve) -> list[tuple[float, float]]:
    return list(zip(curve.x.tolist(), curve.y.tolist(), strict=True))


def test_a_metric_over_steps_frames_and_hours(tmp_path: Path) -> None:
    """Hours are interpolated between the lines that have them."""
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
    assert run.metrics == ["episode/return", "time/elapsed"]
    assert (run.environment, run.values["seed"]) == ("Pendulum-v1", 7)


def test_a_file_that_is_being_written_damaged_or_resumed(tmp_path: Path) -> None:
    """Half a line at the end is no damage, one in the middle is; a step back replaces what was written after it."""
    good = [{"step": 1, "eval/return": 5.0}, {"step": 2, "eval/return": None, "name": "text"}]
    run = run_at(tmp_path / "run", lines=good, end='{"step": 3, "eval')
    assert pairs(run.curve("eval/return")) == [(1, 5)] and run.damaged == 0 and run.metrics == ["eval/return"]
    rest = '{"step": 3, "e\n[1]\n\xff\n{"eval/return": 1}\n{"step": 4, "eval/return": 6.0}\n'
    run = run_at(tmp_path / "run", lines=good, end=rest)
    assert pairs(run.curve("eval/return")) == [(1, 5), (4, 6)] and run.damaged == 4
    back = [{"step": step, "a": step, **({"b": step} if step > 20 else {})} for step in (10, 20, 30, 40)]
    run = run_at(tmp_path / "run", lines=[*back, {"step": 25, "a": -1}, {"step": 35, "b": -2}])
    assert pairs(run.curve("a")) == [(10, 10), (20, 20), (25, -1)] and pairs(run.curve("b")) == [(35, -2)]
    (tmp_path / "run/metrics.jsonl").unlink()
    run = read_run(run.path, run.values)
    assert run.metrics == [] and run.end() == 0 and len(run.curve("eval/return", "hours").x) == 0


def test_runs_that_differ_by_seed_only_are_one_experiment(tmp_path: Path) -> None:
    runs = [
        run_at(tmp_path / "a", "env=pendulum", "seed=0"),
        run_at(tmp_path / "b", "env=pendulum", "seed=1", "total_steps=9000", "wandb.name=b", "eval.every=7"),
        run_at(tmp_path / "c", "env=cartpole"),
        run_at(tmp_path / "d", "env=pendulum", "train_ratio=33"),
        run_at(tmp_path / "e", "env=pendulum", "size=size1m"),
    ]
    first, other, ratio, size = group(runs)
    assert [run.path.name for run in first.runs] == ["a", "b"] and first.count == "2 seeds"
    assert (other.environment, other.difference, other.count) == ("CartPole-v1", "", "1 seed")
    assert ratio.difference == "size=nano, train_ratio=33"
    assert size.difference.startswith("size=size1m, train_ratio=")
    assert group([runs[0], runs[0]])[0].count == "2 runs"
    older = Run(tmp_path, {key: value for key, value in runs[0].values.items() if key != "native"})
    assert len(group([runs[0], older])) == 1  # a setting that was not there yet is as its null
    names = leaves(load([]).values)
    for setting in SAME_EXPERIMENT:
        assert any(name == setting or name.startswith(setting + ".") for name in names), setting


def test_median_and_quartiles_over_seeds() -> None:
    x = np.array([0.0, 10.0, 20.0])
    band = over_seeds([Curve(x, np.array([0.0, 1.0, 2.0]) * factor) for factor in (1, 2, 3, 10)])
    assert band.x.tolist() == x.tolist() and band.runs.tolist() == [4, 4, 4]
    assert band.median.tolist() == [0, 2.5, 5]
    assert band.low.tolist() == [0, 1.75, 3.5] and band.high.tolist() == [0, 4.75, 9.5]
    cut = band.until(15)
    assert cut.x.tolist() == [0, 10, 15] and cut.median.tolist() == [0, 2.5, 3.75]
    assert band.until(20) is band and len(band.until(-1).x) == 0
    band = over_seeds([Curve(x, x), Curve(np.array([5.0, 10.0]), np.array([105.0, 110.0])), Curve(x[:0], x[:0])])
    assert band.x.tolist() == [0, 5, 10, 20] and band.runs.tolist() == [1, 2, 2, 1]
    assert band.median.tolist() == [0, 55, 60, 20]
    assert len(over_seeds([]).x) == 0


def test_many_points_become_few_and_keep_their_means() -> None:
    x = np.arange(100_000.0)
    few = thin(Curve(x, x % 2), 100)
    assert len(few.x) == 100 and np.allclose(few.y, 0.5)
    assert np.allclose(few.x, np.arange(499.5, 100_000, 1000), atol=1)
    assert pairs(thin(Curve(np.array([1.0, 1.0, 3.0]), np.array([2.0, 4.0, 5.0])))) == [(1, 3), (3, 5)]
    band = over_seeds([Curve(x, x), Curve(np.array([0.0, 99_999.0]), np.array([0.0, 99_999.0]))], 50)
    assert len(band.x) == 50 and np.allclose(band.median[1:-1], band.x[1:-1])
