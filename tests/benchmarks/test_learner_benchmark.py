"""The learner benchmark times what it says, in alternation, and records all of it."""

from __future__ import annotations

import json
import os
from importlib import import_module
from pathlib import Path
from statistics import median

import pytest
import torch

from tests.benchmarks.conftest import Program

TINY = "--batch 2 --length 4 --warmup 1".split()


def test_bfloat16_is_timed_beside_float32(program: Program, tmp_path: Path) -> None:
    """Both are ours, of one size, and the ratio is that of one run."""
    file = tmp_path / "record.json"
    program("learner", *TINY, *"--updates 1 --dtype bfloat16 --against float32 --json".split(), file)
    record = json.loads(file.read_text())
    (workload,) = record["workloads"]
    ours, reference = workload["results"]
    names = (ours["contestant"], reference["contestant"])
    assert names == ("dreamer_torchrl eager", "dreamer_torchrl eager in float32")
    assert record["settings"]["dtype"] == "bfloat16" and ours["parameters"] == reference["parameters"] == 640_867
    assert workload["ratio"] == median(ours["seconds"]) / median(reference["seconds"])


def test_duel_with_torchrl_is_recorded(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "new" / "record.json"
    printed = program("learner", *TINY, *"--updates 2 --threads 1 --against torchrl --json".split(), file)
    record = json.loads(file.read_text())
    assert f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} python benchmarks/learner.py --batch" in record["command"]
    assert record["commit"] is None or len(record["commit"].removesuffix("-dirty")) == 40
    assert record["versions"]["torch"] == torch.__version__
    assert (record["machine"]["threads"], record["settings"]["length"]) == (1, 4)
    (workload,) = record["workloads"]
    ours, theirs = workload["results"]
    assert (ours["contestant"], theirs["contestant"]) == ("dreamer_torchrl eager", "torchrl 0.14.1 eager")
    for result in (ours, theirs):
        assert result["parameters"] == 640_867
        assert (len(result["seconds"]), len(result["warmup_seconds"])) == (2, 1)
        assert 0 < result["min"] <= result["lower_quartile"] <= result["median"] == median(result["seconds"])
        assert result["median"] <= result["upper_quartile"] <= result["max"]
        assert 2**20 < result["peak_memory"] < 2**36
    assert workload["ratio"] == pytest.approx(ours["median"] / theirs["median"])
    assert f"ratio {workload['ratio']:.3f}" in printed


@pytest.mark.parametrize(("name", "options"), [("dreamer_v1", ""), ("dreamer_v2", ""), ("r2", "--against decoder")])
def test_the_family_is_timed(program: Program, tmp_path: Path, name: str, options: str) -> None:
    """Each member with its own number of parameters, R2 beside V3 with a decoder, which has fewer of them."""
    file = tmp_path / "record.json"
    program("learner", *TINY, *f"--updates 1 --workload {name} {options} --json".split(), file)
    (workload,) = json.loads(file.read_text())["workloads"]
    ours, *peer = workload["results"]
    assert ours["parameters"] == import_module("workloads").FAMILY[name].parameters
    assert [result["parameters"] for result in peer] == ([686_456] if options else [])


def test_contestants_alternate_and_warmup_does_not_count() -> None:
    played = []

    class Fake:
        parameters, notes = 1, ()

        def __init__(self, name: str, seconds: list[float]) -> None:
            self.name, self.seconds = name, iter(seconds)

        def update(self) -> float:
            played.append(self.name)
            return next(self.seconds)

        def peak_memory(self) -> int:
            return 7

    ours, theirs = import_module("contest").take_turns([Fake("a", [90, 1, 2, 3]), Fake("b", [80, 4, 6, 8])], 1, 3)
    assert played == ["a", "b"] * 4
    assert (ours.warmup_seconds, ours.seconds, ours.median) == ([90], [1, 2, 3], 2)
    assert (theirs.warmup_seconds, theirs.seconds, theirs.median) == ([80], [4, 6, 8], 6)


def test_peak_memory_is_that_of_the_update() -> None:
    """A large tensor held during the update only is noticed, although it is gone afterwards."""
    contest = import_module("contest")
    small = contest.LocalContestant("small", 0, lambda: None, torch.device("cpu"))
    large = contest.LocalContestant("large", 0, lambda: torch.ones(2**26).sum(), torch.device("cpu"))
    small.update()
    large.update()
    assert large.peak_memory() - small.peak_memory() > 200 * 2**20  # it holds 256 MiB
