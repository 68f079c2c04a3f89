"""The benchmark of acting: its record, and that what it times is the acting of training."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

from tests.benchmarks.conftest import Program


def test_table_and_record(program: Program, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    printed = program("policy", *"--environments 1 3 --steps 4 --warmup 1 --json".split(), file)
    record = json.loads(file.read_text())
    rows = [(row["workload"], row["environments"], row["target_ms"]) for row in record["policy"]]
    names = [(name, count) for name in ("proprio_size1m", "vision_size1m") for count in (1, 3)]
    assert rows == [(*name, 1.0 if name == ("proprio_size1m", 1) else None) for name in names]
    for row in record["policy"]:
        for name in ("policy", "send"):
            lower, upper = row[f"{name}_ms_quartiles"]
            assert 0 < row[f"{name}_ms_min"] <= lower <= row[f"{name}_ms"] <= upper
    assert record["versions"]["torch"] == torch.__version__ and "proprio_size1m" in printed


def test_a_duel_is_recorded(program: Program, tmp_path: Path, toy_python: Path) -> None:
    """Turns of 50 steps each. The toy's turns take 0.5 (to warm up), 1.5, 2.5 and 3.5 s."""
    file = tmp_path / "policy.json"
    small = "--workload proprio_size1m --environments 2 --steps 101 --warmup 1 --against sheeprl --peer-python".split()
    program("policy", *small, toy_python, "--json", file)
    (row,) = json.loads(file.read_text())["policy"]
    assert (row["peer"], row["peer_ms"]) == ("toy", pytest.approx(1e3 * 2.5 / 50))
    assert row["ratio"] == pytest.approx(row["turns_ms"] / row["peer_ms"])
    assert 0.5 * row["policy_ms_min"] < row["turns_ms"] < 20 * row["policy_ms"]


def test_prepared_observations_are_those_of_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """No action is given; the latents are those that a collector carries."""
    seen: list[TensorDict] = []

    def record(self: object, tensordict: TensorDict) -> TensorDict:
        seen.append(tensordict.copy())
        return forward(self, tensordict)

    forward = import_module("dreamer_torchrl.agents.policy").Policy.forward
    monkeypatch.setattr("dreamer_torchrl.agents.policy.Policy.forward", record)
    policy = import_module("policy")
    policy.measure(policy.WORKLOADS["proprio_size1m"], 2, steps=2, warmup=0, device=torch.device("cpu"))
    keys = {"observation", "reward", "is_init", "terminated", "done", "belief", "state", "previous_action"}
    assert all(set(one.keys()) == keys and one.shape == (2,) for one in seen)
