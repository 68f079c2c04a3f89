"""Peers in other processes take turns and say why they fail; both peers see our steps."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from dreamer_torchrl import build_agent
from dreamer_torchrl.learners.learner import example_batch
from tests.benchmarks.conftest import TOY, Program

REMEDY = "Get a new toy."


@pytest.fixture
def workload() -> Any:
    return import_module("workloads").WORKLOADS["vision_size1m"]


@pytest.fixture
def steps(workload: Any) -> TensorDict:
    agent = build_agent(workload.observation_spec, workload.action_spec, workload.size_name)
    return example_batch(agent, batch=2, length=30)


def test_a_child_takes_turns() -> None:
    contest, child = import_module("contest"), import_module("child")
    ours = contest.LocalContestant("ours", 1, lambda: None, torch.device("cpu"))
    with child.ChildContestant([sys.executable, TOY, "99"], REMEDY) as toy:
        assert (toy.name, toy.parameters, toy.notes) == ("toy", 3, ["it is a toy"])
        _, result = contest.take_turns([ours, toy], 1, 3)
    assert (result.warmup_seconds, result.seconds, result.peak_memory) == ([0.5], [1.5, 2.5, 3.5], 300)
    assert toy._process.returncode is not None  # it ends with the contest


def test_a_child_that_breaks_says_why() -> None:
    child = import_module("child")
    with child.ChildContestant([sys.executable, TOY, "1"], REMEDY) as toy:
        toy.update()
        with pytest.raises(child.ChildError, match=r"ended with code 1: the toy broke\. Get a new toy\."):
            toy.update()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ([sys.executable, "-c", "import no_such_package"], "No module named 'no_such_package'. Get a new toy."),
        ([sys.executable, "-c", "print('hello')"], "does not answer in JSON: hello. Get a new toy."),
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "ended by signal 9"),
        (["nothing/here"], r"cannot be started: No such file or directory\. Get a"),
    ],
)
def test_a_child_that_never_begins(command: list[str], message: str) -> None:
    child = import_module("child")
    with pytest.raises(child.ChildError, match=message):
        child.ChildContestant(command, REMEDY)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("learner --workload proprio", "--workload"),
        ("learner --updates 0", "--updates"),
        ("learner --against sheeprl", "--against sheeprl needs --peer-python. sheeprl needs an environment of its own"),
        ("learner --against sheeprl --peer-mode full", "sheeprl has eager, compiled"),
        ("learner --against sheeprl --peer-python x --device meta", "runs on the CPU, not on meta"),
        ("learner --against torchrl --peer-mode graph --device cpu", "cpu captures no graphs"),
        ("policy --against sheeprl", "--against sheeprl needs --peer-python. sheeprl needs an environment of its own"),
        ("policy --against sheeprl --peer-python x --device meta", "runs on the CPU, not on meta"),
    ],
)
def test_impossible_arguments_are_named(
    arguments: str, message: str, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        program(*arguments.split())
    assert message in " ".join(capsys.readouterr().err.split())


def test_sheeprl_missing_in_its_environment(workload: Any, steps: TensorDict) -> None:
    """This environment has no sheeprl: the message has the commands that install it."""
    child = import_module("child")
    message = r"ended with code 1: ModuleNotFoundError: No module named .*pip install torch==.* sheeprl==0\.8\.4"
    with pytest.raises(child.ChildError, match=message):
        child.start_sheeprl(Path(sys.executable), workload.size_name, steps)


def test_sheeprl_sees_the_same_steps(steps: TensorDict) -> None:
    """Time comes first, images have their channels first, an end that is no termination is a truncation."""
    data = import_module("sheeprl_peer").stream_of(dict(steps.items()))
    assert {value.shape[:2] for value in data.values()} == {(31, 2)}
    assert torch.equal(data["rgb"][3, 1, :, 10, 20], steps["pixels"][1, 3, 10, 20])
    assert torch.equal(data["truncated"].bool(), (steps["done"] & ~steps["terminated"]).transpose(0, 1))
    assert torch.equal(data["stoch"][:, 0], steps["state"][0])
    assert data["deter"].dtype == torch.float16


def test_sheeprl_sees_steps_without_latents(steps: TensorDict) -> None:
    """DreamerV1 and V2 start sequences at zeros."""
    data = import_module("sheeprl_peer").stream_of(dict(steps.exclude("belief", "state").items()))
    assert "deter" not in data and data["rgb"].shape[:2] == (31, 2)


def test_torchrl_sees_the_same_steps(workload: Any, steps: TensorDict) -> None:
    """In TorchRL's layout the observation and reward of a transition belong to the step after its action."""
    sample = import_module("torchrl_peer").transitions(workload, steps)
    assert sample.shape == (2, 30) and sample["next", "pixels"].dtype == torch.uint8
    assert torch.equal(sample["next", "pixels"][1, 2, :, 10, 20], steps["pixels"][1, 3, 10, 20])
    assert torch.equal(sample["next", "reward"], steps["reward"][:, 1:])
    assert torch.equal(sample["action"].bool(), steps["action"][:, :-1])
    assert torch.equal(sample["state"].unflatten(-1, (32, 4)).argmax(-1), steps["state"][:, :-1].long())


def test_torchrl_runs_on_one_device() -> None:
    """The meta device stands in for a GPU: a tensor left behind on the CPU would raise."""
    workload, meta = import_module("workloads").WORKLOADS["proprio_size1m"], torch.device("meta")
    agent = build_agent(workload.observation_spec, workload.action_spec, size=workload.size_name)
    peer = import_module("torchrl_peer")
    with meta:
        loss, _ = peer.build_loss(workload, meta)
    _, posterior = loss.model_loss(peer.transitions(workload, example_batch(agent, batch=2, length=3).to(meta)))
    losses, imagined = loss.actor_loss(posterior["next"].select("state", "belief").flatten())
    losses.update(loss.value_loss(imagined)[0])
    assert losses["loss_actor"].device == losses["loss_value"].device == meta


def test_another_architecture_is_not_timed() -> None:
    workload = replace(import_module("workloads").WORKLOADS["proprio_size1m"], size_name="nano")
    agent = build_agent(workload.observation_spec, workload.action_spec, size="nano")
    with pytest.raises(RuntimeError, match="the official agent has 640,867"):
        import_module("learner").our_learner(workload, agent, example_batch(agent, 1, 1), compile=False)
