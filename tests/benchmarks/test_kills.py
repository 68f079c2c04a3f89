"""A few kills in CI; `python benchmarks/kills.py --kills 50` does many."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    outcome = import_module("kills").torture(tmp_path, kills=3, seed=0)
    assert sum(outcome["killed_while"].values()) == 3
    assert outcome["updates"] > 10 and outcome["episodes_and_evaluations"] > 0
