"""Each measuring program ends in a record of real runs, at a small size."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.benchmarks.conftest import Program

SMALL = "threads=1 size.belief=32 size.hidden=16 size.units=16 total_steps=80 train_ratio=4 eval.every=40 eval.dream=0"


@pytest.mark.slow
def test_shares_of_a_training(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    small = "size=nano replay.batch=2 replay.length=8 train_ratio=16 log.every=0.1".split()
    to = ["--folder", tmp_path, "--json", file]
    printed = program("end_to_end", "--only", "cartpole", "--steps", "60", *to, "--overrides", *small)
    (run,) = json.loads(file.read_text())["runs"]
    assert sum(run["shares"].values()) == pytest.approx(1, abs=0.01)
    assert run["shares"]["learner"] > max(share for part, share in run["shares"].items() if part != "learner")
    assert 30 < run["updates"] <= 60 and str(tmp_path) not in run["command"]
    assert f"learner {run['shares']['learner']:.1%}" in printed


@pytest.mark.slow
def test_a_record_of_learning(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    to = ["--folder", tmp_path, "--json", file]
    printed = program("learning", "--experiment", "cartpole", "--seeds", "4", *to, "--overrides", *SMALL.split())
    assert "cartpole seed 4:" in printed and "MISSED" in printed  # nobody learns in 80 steps
    (run,) = json.loads(file.read_text())["runs"]
    assert run["evaluation"]["seed"] == 1004 and len(run["evaluation"]["returns"]) == 20
    assert [step for step, _ in run["evaluations"]] == [40, 80]
    assert run["episodes"] and all(total == length for _, _, total, length in run["episodes"])  # CartPole pays 1 a step


def test_an_episode_is_a_line() -> None:
    record = {"runs": [{"episodes": [[1, 2, -0.5, 3], [10, 20, 1e-7, 4]], "words": ["a", "[1,\n2]"], "none": []}]}
    text = import_module("learning").written(record)
    assert json.loads(text) == record
    assert [line.strip() for line in text.splitlines() if "20" in line] == ["[10, 20, 1e-07, 4]"]


def test_the_official_curve_beside_ours() -> None:
    learning = import_module("learning")
    curve = learning.official("cartpole_swingup")
    assert {(50_000, 279.148), (100_000, 512.072)} <= set(curve)
    runs = [{"episodes": [[0, 49_000, value, 1], [0, 52_000, value + 2, 1], [0, 99_000, 5, 1]]} for value in (1, 3, 8)]
    rows = {row["frames"]: row for row in learning.overlay(runs, curve)}
    assert rows.pop(50_000) == {"frames": 50_000, "official": 279.148, "ours": 4}
    assert rows.pop(100_000)["ours"] == 5 and not rows


def test_replay_table_and_record(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "replay.json"
    printed = program("replay", *"--workload proprio_size1m --steps 12000 --draws 3 --json".split(), file)
    rows = json.loads(file.read_text())["replay"]
    assert [row["fill"] for row in rows] == [10_000, 12_000] and "12,000" in printed
    assert all(0 < row["sample_ms"] <= row["sample_ms_max"] for row in rows)


@pytest.mark.slow
def test_a_point_of_each_scaling_axis(program: Program, tmp_path: Path) -> None:
    program("scaling", *"--quick --threads 1 --device cpu --folder".split(), tmp_path)
    points = json.loads((tmp_path / "scaling.json").read_text())["points"]
    found = [(point["axis"], point["value"]) for point in points]
    assert found == [("batch", 2), ("length", 4), ("size", "nano"), ("environments", 2), ("replay fill", 600)]
    assert all(point["seconds"] > 0 and 2**26 < point["peak_memory"] < 2**33 for point in points)
    lines = (tmp_path / "scaling.md").read_text().splitlines()
    assert sum(line.startswith("| replay fill | 600 | draw | ") for line in lines) == 1
    assert (tmp_path / "scaling.png").exists()


@pytest.mark.slow
def test_a_scaling_point_that_fails_is_recorded(tmp_path: Path) -> None:
    scaling = import_module("scaling")
    effort = scaling.Effort(torch.device("cpu"), torch.float32, False, True, 1, True)
    found = {"axis": "batch", "value": 0} | scaling.in_own_process("batch", 0, effort)
    assert "seconds" not in found and found["error"] in scaling.table([found])
    scaling.save_plot([found], tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()
