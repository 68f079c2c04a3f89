"""A real short training, and the shares of its time that the benchmark writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks/end_to_end.py"


def test_shares_of_a_real_run(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    small = ["size=nano", "replay.batch=2", "replay.length=8", "train_ratio=16", "log.every=0.1"]
    command = [sys.executable, str(PROGRAM), "--only", "cartpole", "--steps", "60", "--folder", str(tmp_path)]
    done = subprocess.run([*command, "--json", str(output), "--words", *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(output.read_text())["runs"]
    assert sum(run["shares"].values()) == pytest.approx(1, abs=0.01)
    assert run["shares"]["learner"] > max(share for part, share in run["shares"].items() if part != "learner")
    assert 30 < run["updates"] <= 60
    assert str(tmp_path) not in run["command"]
    assert f"learner {run['shares']['learner']:.1%}" in done.stdout
