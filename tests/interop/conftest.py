"""Files of the tests of the reader of official pickles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """The file that every attack tries to make; it must not be there when the test is over."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a test writes the pickle that it wants read."""
    return tmp_path / "agent.pkl"
