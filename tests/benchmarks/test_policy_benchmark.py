"""The benchmark of acting: its record, and that what it times is the acting of training."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tensordict import TensorDict

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return import_module("policy")


def test_table_and_record(
    policy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "policy.json"
    words = ["--environments", "1", "3", "--steps", "4", "--warmup", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["policy.py", *words])
    policy.main()
    record = json.loads(file.read_text())
    rows = [(row["workload"], row["environments"], row["target_ms"]) for row in record["policy"]]
    assert rows == [
        *(("proprio_size1m", 1, 1.0), ("proprio_size1m", 3, None)),
        *(("vision_size1m", 1, None), ("vision_size1m", 3, None)),
    ]
    for row in record["policy"]:
        for name in ("policy", "send"):
            lower, upper = row[f"{name}_ms_quartiles"]
            assert 0 < row[f"{name}_ms_min"] <= lower <= row[f"{name}_ms"] <= upper
    assert record["versions"]["torch"] == torch.__version__
    assert "proprio_size1m" in capsys.readouterr().out


def test_a_duel_is_recorded(policy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of 50 steps each. The other side is a toy: its turns take 0.5 (to warm up), 1.5, 2.5 and 3.5 s."""
    python, file = tmp_path / "python", tmp_path / "policy.json"
    toy = Path(__file__).with_name("toy_peer.py")
    python.write_text(f"#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(toy))} 99\n")
    python.chmod(0o755)
    words = ["--workload", "proprio_size1m", "--environments", "2", "--steps", "101", "--warmup", "1"]
    words += ["--against", "sheeprl", "--peer-python", str(python), "--json", str(file)]
    monkeypatch.setattr(sys, "argv", ["policy.py", *words])
    policy.main()
    (row,) = json.loads(file.read_text())["policy"]
    assert (row["peer"], row["peer_ms"]) == ("toy", pytest.approx(1e3 * 2.5 / 50))
    assert row["ratio"] == pytest.approx(row["turns_ms"] / row["peer_ms"])
    assert 0.5 * row["policy_ms_min"] < row["turns_ms"] < 20 * row["policy_ms"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--against", "sheeprl"], "--against sheeprl needs --peer-python. sheeprl wants an environment of its own"),
        (["--against", "sheeprl", "--peer-python", "python", "--device", "meta"], "runs on the CPU, not on meta"),
    ],
)
def test_a_peer_that_cannot_be_asked(
    words: list[str],
    message: str,
    policy: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["policy.py", *words])
    with pytest.raises(SystemExit, match="2"):
        policy.main()
    assert message in " ".join(capsys.readouterr().err.split())


def test_prepared_observations_are_what_environments_show(policy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No action and no latents are given away: the collector adds those that it carries."""
    seen: list[TensorDict] = []

    def record(self: object, tensordict: TensorDict) -> TensorDict:
        seen.append(tensordict.copy())
        return forward(self, tensordict)

    forward = import_module("dreamer_torchrl.agents.policy").Policy.forward
    monkeypatch.setattr("dreamer_torchrl.agents.policy.Policy.forward", record)
    policy.measure(policy.WORKLOADS["proprio_size1m"], 2, steps=2, warmup=0, device=torch.device("cpu"))
    first, second, *alone = seen
    assert set(first.keys()) == {"observation", "reward", "is_init", "terminated", "done"}
    assert set(second.keys()) == {*first.keys(), "belief", "state", "previous_action"}
    assert all(set(one.keys()) == set(second.keys()) and one.shape == (2,) for one in alone)
