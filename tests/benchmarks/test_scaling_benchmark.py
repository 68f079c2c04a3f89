"""How cost grows: every axis is measured, failures are written down, and the plot is optional."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("scaling")


def test_a_point_of_each_axis(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/scaling.py", "--quick", "--threads", "1", "--folder", str(tmp_path)]
    outcome = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert outcome.returncode == 0, outcome.stderr
    points = json.loads((tmp_path / "scaling.json").read_text())["points"]
    found = [(point["axis"], point["value"]) for point in points]
    assert found == [("batch", 2), ("length", 4), ("size", "nano"), ("environments", 2), ("replay fill", 600)]
    for point in points:
        assert point["seconds"] > 0
        assert 2**26 < point["peak_memory"] < 2**33
    lines = (tmp_path / "scaling.md").read_text().splitlines()
    assert sum(line.startswith("| replay fill | 600 | draw | ") for line in lines) == 1
    assert (tmp_path / "scaling.png").exists() != ("pip install matplotlib" in outcome.stdout)


def test_a_point_that_fails_is_written_down(scaling: ModuleType, tmp_path: Path) -> None:
    effort = scaling.Effort(torch.device("cpu"), torch.float32, False, True, 1, True)
    found = {"axis": "batch", "value": 0} | scaling.in_own_process("batch", 0, effort)
    assert "seconds" not in found and found["error"]
    assert found["error"] in scaling.table([found])
    assert scaling.save_plot([found], tmp_path / "empty.png") in (True, False)
    assert not (tmp_path / "empty.png").exists()
