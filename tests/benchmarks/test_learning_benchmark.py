"""The learning benchmark: a real run ends in a record with all episodes, and the official curve lies beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from tests.test_readme_commands import LEARNING

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "learning.py"
TINY = "threads=1 size.belief=32 size.hidden=16 size.units=16 total_steps=80 train_ratio=4 eval.every=40 eval.dream=0"


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = spec_from_file_location("learning", SCRIPT)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "learning", module)
    spec.loader.exec_module(module)
    return module


def test_a_record_of_a_real_run(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    _, *command = LEARNING.replace("NAME", "cartpole").split()  # as README.md has it
    command += ["--seeds", "4", "--folder", str(tmp_path), "--json", str(output), "--words", *TINY.split()]
    ran = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert "cartpole seed 4:" in ran.stdout
    assert "MISSED" in ran.stdout  # nobody learns in 80 steps
    (run,) = json.loads(output.read_text())["runs"]
    assert run["evaluation"]["seed"] == 1004
    assert len(run["evaluation"]["returns"]) == 20
    assert [step for step, _ in run["evaluations"]] == [40, 80]
    assert run["episodes"]
    assert all(total == length for _, _, total, length in run["episodes"])  # CartPole pays 1 a step


def test_an_episode_is_a_line(learning: ModuleType) -> None:
    record = {"runs": [{"episodes": [[1, 2, -0.5, 3], [10, 20, 1e-7, 4]], "words": ["a", "[1,\n2]"], "none": []}]}
    text = learning.written(record)
    assert json.loads(text) == record
    assert [line.strip() for line in text.splitlines() if "20" in line] == ["[10, 20, 1e-07, 4]"]


def test_the_official_curve_beside_ours(learning: ModuleType) -> None:
    curve = learning.official("cartpole_swingup")
    assert (50_000, 279.148) in curve
    assert (100_000, 512.072) in curve
    runs = [{"episodes": [[0, 49_000, value, 1], [0, 52_000, value + 2, 1], [0, 99_000, 5, 1]]} for value in (1, 3, 8)]
    rows = {row["frames"]: row for row in learning.overlay(runs, curve)}
    assert rows[50_000] == {"frames": 50_000, "official": 279.148, "ours": 4}
    assert rows[100_000]["ours"] == 5
    assert set(rows) == {50_000, 100_000}
