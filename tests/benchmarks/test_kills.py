"""A few kills in CI; `python benchmarks/kills.py --kills 50` does many."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "belief"), [(1, 32), (2, 256)])
def test_a_killed_run_ends_as_one_that_was_not(
    threads: int, belief: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    kills = import_module("kills")
    outcome = kills.torture(tmp_path, kills=2, seed=0, settings=kills.settings_for(threads, belief))
    assert sum(outcome["killed_while"].values()) == 2
    assert outcome["updates"] > 10 and outcome["episodes_and_evaluations"] > 0
