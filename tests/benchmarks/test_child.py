"""A contestant in another process: it is asked in turn, says what it measured, and its end is told with a mend."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensordict import TensorDict

from dreamer_torchrl import build_agent
from dreamer_torchrl.learners.learner import example_batch

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).with_name("toy_peer.py")
MEND = "Get a new toy."


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def child() -> ModuleType:
    return import_module("child")


def test_a_child_takes_turns(child: ModuleType) -> None:
    contest = import_module("contest")
    ours = contest.LocalContestant("ours", 1, lambda: None, torch.device("cpu"))
    with child.ChildContestant([sys.executable, TOY, "99"], MEND) as toy:
        assert (toy.name, toy.parameters, toy.notes) == ("toy", 3, ["it is a toy"])
        _, result = contest.take_turns([ours, toy], 1, 3)
    assert result.warmup_seconds == [0.5]
    assert result.seconds == [1.5, 2.5, 3.5]
    assert result.peak_memory == 300
    assert toy._process.returncode is not None  # it does not outlive the contest


def test_a_child_that_breaks_says_why(child: ModuleType) -> None:
    with child.ChildContestant([sys.executable, TOY, "1"], MEND) as toy:
        toy.update()
        with pytest.raises(child.ChildError, match=r"ended with code 1: the toy broke\. Get a new toy\."):
            toy.update()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-c", "import no_such_package"], "No module named 'no_such_package'. Get a new toy."),
        (["-c", "print('hello')"], "does not answer in JSON: hello. Get a new toy."),
        (["-c", "import os; os.kill(os.getpid(), 9)"], "ended by signal 9"),
    ],
)
def test_a_child_that_never_begins(child: ModuleType, words: list[str], message: str) -> None:
    with pytest.raises(child.ChildError, match=message):
        child.ChildContestant([sys.executable, *words], MEND)


def test_a_program_that_is_not_there(child: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(child.ChildError, match=r"cannot be started: No such file or directory\. Get a"):
        child.ChildContestant([tmp_path / "nothing"], MEND)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "sheeprl"], "--against sheeprl needs --peer-python. sheeprl wants an environment of its own"),
        (["--against", "sheeprl", "--peer-mode", "full"], "sheeprl has eager, compiled"),
        (["--against", "sheeprl", "--peer-python", sys.executable, "--device", "meta"], "runs on the CPU, not on meta"),
        (["--against", "torchrl", "--peer-mode", "graph", "--device", "cpu"], "cpu captures no graphs"),
    ],
)
def test_peers_are_asked_for_what_they_have(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["learner.py", *words])
    with pytest.raises(SystemExit, match="2"):
        import_module("learner").main()
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.fixture
def steps() -> TensorDict:
    workload = import_module("workloads").WORKLOADS["vision_size1m"]
    agent = build_agent(workload.observation_spec, workload.action_spec, workload.size_name)
    return example_batch(agent, batch=2, length=30)


def test_sheeprl_missing_in_its_environment(steps: TensorDict) -> None:
    """This environment has no sheeprl: the peer dies of that, and the message names the mend."""
    workload = import_module("workloads").WORKLOADS["vision_size1m"]
    message = r"ended with code 1: ModuleNotFoundError: No module named .*pip install torch==.* sheeprl==0\.8\.4"
    with pytest.raises(import_module("child").ChildError, match=message):
        import_module("child").start_sheeprl(Path(sys.executable), workload.size_name, steps)


def test_sheeprl_sees_the_same_steps(steps: TensorDict) -> None:
    """Time comes first, images have their channels first, an end that is no termination is a truncation."""
    data = import_module("sheeprl_peer").stream_of(dict(steps.items()))
    assert {value.shape[:2] for value in data.values()} == {(31, 2)}
    assert torch.equal(data["rgb"][3, 1, :, 10, 20], steps["pixels"][1, 3, 10, 20])
    assert torch.equal(data["truncated"].bool(), (steps["done"] & ~steps["terminated"]).transpose(0, 1))
    assert torch.equal(data["stoch"][:, 0], steps["state"][0])
    assert data["deter"].dtype == torch.float16
