"""The online loop of docs/parts.md learns: TorchRL's collector, our replay and our learner, in at most 40 lines."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "parts.md"


def the_loop() -> str:
    """The code of the page; `tests/test_docs.py` runs it as it is."""
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S) if "STEPS, ENVS" in block)
    return code


def test_it_is_short() -> None:
    assert len([line for line in the_loop().splitlines() if line]) <= 40


@pytest.mark.slow
def test_it_learns_cartpole() -> None:
    """An untrained agent gets about 20 in an episode."""
    names: dict[str, Any] = {}
    exec(the_loop().replace("TRAIN_RATIO = 240,", "TRAIN_RATIO = 16_000,"), names)
    returns = names["returns"]
    assert fmean(returns[:10]) < 60
    assert max(fmean(returns[first : first + 10]) for first in range(len(returns) - 10)) > 250
