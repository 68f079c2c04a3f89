"""The learner benchmark times what it says, in turn, and writes down all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
import torch

from dreamer_torchrl import build_agent
from dreamer_torchrl.learners.learner import example_batch

ROOT = Path(__file__).parents[2]
PROGRAM = "benchmarks/learner.py"
TINY = ["--batch", "2", "--length", "4", "--warmup", "1"]


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a file of the benchmarks as they import one another."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module


def benchmark(*arguments: str) -> str:
    outcome = subprocess.run([sys.executable, PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_bfloat16_is_timed_beside_float32(tmp_path: Path) -> None:
    """Both are ours, of one size, and the ratio is that of one run."""
    file = tmp_path / "record.json"
    benchmark(*TINY, "--updates", "1", "--dtype", "bfloat16", "--against", "float32", "--json", str(file))
    record = json.loads(file.read_text())
    (workload,) = record["workloads"]
    ours, reference = workload["results"]
    assert (ours["contestant"], reference["contestant"]) == (
        "dreamer_torchrl eager",
        "dreamer_torchrl eager in float32",
    )
    assert record["settings"]["dtype"] == "bfloat16" and ours["parameters"] == reference["parameters"] == 640_867
    assert workload["ratio"] == median(ours["seconds"]) / median(reference["seconds"])


def test_duel_with_torchrl_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "new" / "record.json"
    printed = benchmark(*TINY, "--updates", "2", "--threads", "1", "--against", "torchrl", "--json", str(file))

    record = json.loads(file.read_text())
    variables = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"  # it changes the times, too
    assert f"{variables} python {PROGRAM} --batch 2" in record["command"]
    assert record["commit"] is None or len(record["commit"].removesuffix("-dirty")) == 40
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["threads"] == 1
    assert record["settings"]["length"] == 4

    (workload,) = record["workloads"]
    assert workload["workload"] == "proprio_size1m"
    ours, theirs = workload["results"]
    assert ours["contestant"] == "dreamer_torchrl eager"
    assert theirs["contestant"] == "torchrl 0.14.1 eager"
    for result in (ours, theirs):
        assert result["parameters"] == 640_867
        assert len(result["seconds"]) == 2
        assert len(result["warmup_seconds"]) == 1
        assert result["median"] == pytest.approx(median(result["seconds"]))
        assert 0 < result["min"] <= result["lower_quartile"] <= result["median"]
        assert result["median"] <= result["upper_quartile"] <= result["max"]
        assert 2**20 < result["peak_memory"] < 2**36
    assert workload["ratio"] == pytest.approx(ours["median"] / theirs["median"])
    assert f"ratio {workload['ratio']:.3f}" in printed


def test_one_update_alone_in_bfloat16() -> None:
    printed = benchmark(*TINY, "--updates", "1", "--dtype", "bfloat16", "--device", "cpu")
    assert "dreamer_torchrl eager" in printed
    assert "bfloat16" in printed
    assert "ratio" not in printed


@pytest.mark.parametrize("wrong", [["--workload", "proprio"], ["--updates", "0"], ["--against", "nobody"]])
def test_wrong_arguments_are_named(wrong: list[str]) -> None:
    outcome = subprocess.run([sys.executable, PROGRAM, *wrong], cwd=ROOT, capture_output=True, text=True)
    assert outcome.returncode == 2
    assert wrong[0] in outcome.stderr


def test_contestants_take_turns_and_warmup_does_not_count(part: Callable[[str], ModuleType]) -> None:
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

    ours, theirs = part("contest").take_turns([Fake("a", [90, 1, 2, 3]), Fake("b", [80, 4, 6, 8])], 1, 3)

    assert played == ["a", "b"] * 4
    assert (ours.warmup_seconds, ours.seconds, ours.median) == ([90], [1, 2, 3], 2)
    assert (theirs.warmup_seconds, theirs.seconds, theirs.median) == ([80], [4, 6, 8], 6)


def test_spread_of_a_single_time(part: Callable[[str], ModuleType]) -> None:
    contest = part("contest")
    alone = contest.LocalContestant("a", 1, lambda: None, torch.device("cpu"))
    (result,) = contest.take_turns([alone], 0, 1)
    assert result.min == result.lower_quartile == result.median == result.upper_quartile == result.max


def test_peak_memory_is_that_of_the_update(part: Callable[[str], ModuleType]) -> None:
    """A large tensor held during the update only is noticed, although it is gone afterwards."""
    contest = part("contest")
    small = contest.LocalContestant("small", 0, lambda: None, torch.device("cpu"))
    large = contest.LocalContestant("large", 0, lambda: torch.ones(2**26).sum(), torch.device("cpu"))
    small.update()
    large.update()
    assert large.peak_memory() - small.peak_memory() > 200 * 2**20  # it holds 256 MiB


def test_peer_sees_the_same_steps(part: Callable[[str], ModuleType]) -> None:
    """In TorchRL's layout the observation and reward of a transition belong to the step after its action."""
    workload = part("workloads").WORKLOADS["vision_size1m"]
    agent = build_agent(workload.observation_spec, workload.action_spec, size=workload.size_name)
    steps = example_batch(agent, batch=2, length=5)
    sample = part("torchrl_peer").transitions(workload, steps)

    assert sample.shape == (2, 5)
    assert sample["next", "pixels"].dtype == torch.uint8
    assert torch.equal(sample["next", "pixels"][1, 2, :, 10, 20], steps["pixels"][1, 3, 10, 20])
    assert torch.equal(sample["next", "reward"], steps["reward"][:, 1:])
    assert torch.equal(sample["action"].bool(), steps["action"][:, :-1])
    classes = sample["state"].unflatten(-1, (32, 4)).argmax(-1)
    assert torch.equal(classes, steps["state"][:, :-1].long())


def test_peer_runs_on_one_device(part: Callable[[str], ModuleType]) -> None:
    """The meta device stands in for a GPU: a tensor left behind on the CPU would raise."""
    workload, meta = part("workloads").WORKLOADS["proprio_size1m"], torch.device("meta")
    agent = build_agent(workload.observation_spec, workload.action_spec, size=workload.size_name)
    peer = part("torchrl_peer")
    with meta:
        loss, _ = peer.build_loss(workload, meta)
    _, posterior = loss.model_loss(peer.transitions(workload, example_batch(agent, batch=2, length=3).to(meta)))
    losses, imagined = loss.actor_loss(posterior["next"].select("state", "belief").flatten())
    losses.update(loss.value_loss(imagined)[0])
    assert losses["loss_actor"].device == losses["loss_value"].device == meta


def test_another_architecture_is_not_timed(part: Callable[[str], ModuleType]) -> None:
    workload = replace(part("workloads").WORKLOADS["proprio_size1m"], size_name="nano")
    agent = build_agent(workload.observation_spec, workload.action_spec, size="nano")
    with pytest.raises(RuntimeError, match="the official agent has 640,867"):
        part("learner").our_learner(workload, agent, example_batch(agent, 1, 1), compile=False)
