"""Each measuring program ends in a record of real runs, at a small size."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from dreamer_torchrl import evaluate, load
from dreamer_torchrl.training.hub import packed
from dreamer_torchrl.training.pretrained import WEIGHTS
from tests.benchmarks.conftest import Program
from tests.training.training_examples import trained

SMALL = "prefill=0 env.num_envs=1 replay.batch=2 replay.length=8 size.belief=32 size.hidden=16 size.units=16"
SMALL += " total_steps=80 train_ratio=4 eval.every=40 eval.dream=0"


@pytest.mark.slow
def test_shares_of_a_training(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    small = "env.num_envs=1 size=nano replay.batch=2 replay.length=8 train_ratio=16 log.every=0.1".split()
    to = ["--folder", tmp_path, "--json", file]
    printed = program("end_to_end", "--only", "cartpole", "--steps", "60", *to, "--overrides", *small)
    (run,) = json.loads(file.read_text())["runs"]
    assert sum(run["shares"].values()) == pytest.approx(1, abs=0.01)
    assert run["shares"]["learner"] > max(share for part, share in run["shares"].items() if part != "learner")
    assert 30 < run["updates"] <= 60 and str(tmp_path) not in run["command"]
    assert f"learner {run['shares']['learner']:.1%}" in printed


@pytest.mark.slow
def test_a_run_is_recorded_and_continued_for_some_minutes(program: Program, tmp_path: Path) -> None:
    where = ["--task", "mine", "--folder", tmp_path, "--results", tmp_path / "results"]
    options = ["--env", "cartpole", "--seeds", "4", *where]
    assert "mine seed 4:" in program("learning", *options, "--overrides", *SMALL.split())
    (score,) = import_module("scores").read_scores(tmp_path / "results" / "scores.csv")
    assert (score.run, score.episodes, score.steps) == (("mine", "laptop", "dreamer_v3", 4), 20, 80)
    assert score.finished and score.minutes > 0 and "experiment=laptop env=cartpole" in score.command
    rows = list(csv.DictReader((tmp_path / "results" / "curves" / "mine-laptop-4.csv").read_text().splitlines()))
    assert [row["step"] for row in rows if row["evaluation"]] == ["40", "80"]

    longer = [*SMALL.split(), "total_steps=1000000", "eval.every=0"]
    program("learning", *options, "--minutes", "0.25", "--overrides", *longer)
    (later,) = import_module("scores").read_scores(tmp_path / "results" / "scores.csv")
    assert not later.finished and later.steps >= 80 and later.minutes > score.minutes + 0.1


def test_a_curve_has_means_of_stretches() -> None:
    scores = import_module("scores")
    lines = [{"step": n, "count/frames": 2 * n, "episode/return": n, "time/elapsed": 6 * n} for n in range(1, 1001)]
    lines.append({"step": 1000, "eval/return": -3.0})
    rows = scores.curve(lines, points=10)
    assert [row["step"] for row in rows] == list(range(100, 1001, 100))
    assert rows[0] == {"step": 100, "frames": 200, "minutes": 10.0, "evaluation": "", "training": "50.5"}
    assert rows[-1]["evaluation"] == "-3"


def test_the_official_curve_beside_ours() -> None:
    learning = import_module("learning")
    curve = learning.official("cartpole_swingup")
    assert {(50_000, 279.148), (100_000, 512.072)} <= set(curve)
    returns = {49_000: 0, 52_000: 2, 99_000: 5}
    curves = [
        [{"frames": str(at), "training": str(value + plus)} for at, value in returns.items()] for plus in (1, 3, 8)
    ]
    rows = {frames: (ours, theirs) for frames, ours, theirs in learning.beside_official(curves, curve)}
    assert rows == {50_000: (4, 279.148), 100_000: (8, 512.072)}


def test_the_tables_of_scores_are_up_to_date() -> None:
    for page, text in import_module("leaderboard").pages().items():
        assert page.read_text() == text, "run: python benchmarks/leaderboard.py"


def test_a_later_score_of_a_run_replaces_the_earlier_one(tmp_path: Path) -> None:
    scores = import_module("scores")
    one = scores.read_scores()[0]
    path = tmp_path / "scores.csv"
    for changed in (one, replace(one, seed=9), replace(one, mean=1.5, finished=False)):
        scores.add_score(changed, path)
    assert scores.read_scores(path) == [replace(one, mean=1.5, finished=False), replace(one, seed=9)]


def test_an_agent_is_shelved_with_its_line_and_replaced(program: Program, tmp_path: Path) -> None:
    scores, shelve, run = import_module("scores"), import_module("shelve"), tmp_path / "run"
    trained(run, "env=cartpole", "total_steps=24", "train_ratio=0", "eval.every=0")
    words = [run, "--name", "mine", "--results", tmp_path, "--folder", tmp_path / "agents"]
    with pytest.raises(SystemExit, match="was not evaluated"):
        program("shelve", *words)
    assert evaluate.main([str(run), "--episodes", "2"]) == 0
    with pytest.raises(SystemExit, match=r"scores\.csv has no line of `python .*env=cartpole"):
        program("shelve", *words)
    mean = json.loads((run / "evaluation.json").read_text())["mean"]
    line = replace(scores.read_scores()[0], task="poles", command=packed(load(run))[0].command, steps=24, mean=mean)
    for minutes in (1.5, 2.5):
        scores.add_score(replace(line, minutes=minutes), tmp_path / "scores.csv")
        program("shelve", *words)
        card = load(tmp_path / "agents" / "mine").card
        assert (card.task, card.minutes, card.commit) == ("poles", minutes, line.commit)
    scores.add_score(replace(line, mean=mean + 1), tmp_path / "scores.csv")
    with pytest.raises(SystemExit, match="this is another run"):
        program("shelve", *words)
    with pytest.raises(SystemExit, match="at most 3,000,000 go here: use push_to_hub"):
        shelve.check_sizes(tmp_path / "agents", "large", 3_000_001)
    (tmp_path / "agents" / "mine" / WEIGHTS).write_bytes(bytes(29_000_000))
    shelve.check_sizes(tmp_path / "agents", "mine", 2_000_000)
    with pytest.raises(SystemExit, match="at most 30,000,000: remove an agent"):
        shelve.check_sizes(tmp_path / "agents", "other", 2_000_000)


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


@pytest.mark.slow
def test_two_ranks_are_measured_and_more_are_extrapolated(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    printed = program("scaling_out", "--workload", "proprio_size1m", "--updates", "1", "--json", file)
    found = json.loads(file.read_text())["scaling_out"]["proprio_size1m"]
    assert found["reduced_bytes"] > 4 * 640_867  # every gradient, and the metrics
    assert found["sent_bytes"] == found["reduced_bytes"] + found["gathered_bytes"]
    assert found["half"]["cpu_median"] < found["whole"]["cpu_median"]
    assert f"{found['sent_bytes']:,} bytes sent" in printed
    assert [each["ranks"] for each in found["extrapolated"]] == [8, 64]
