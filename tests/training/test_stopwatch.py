"""Shares of the time: each part's own, and what is left."""

from __future__ import annotations

import time

import pytest

from dreamer_torchrl.training.progress import Stopwatch


def test_shares_are_those_since_they_were_asked_for() -> None:
    """Also of a part that raises; the second time tells nothing of the first."""
    stopwatch = Stopwatch("long", "short", "never")
    with stopwatch("long"):
        time.sleep(0.06)
    with pytest.raises(ZeroDivisionError), stopwatch("short"):
        time.sleep(0.02)
        _ = 1 / 0
    shares = stopwatch.shares()
    assert list(shares) == ["long", "short", "never", "other"] and sum(shares.values()) == pytest.approx(1)
    assert shares["long"] > 2 * shares["short"] > 0 and shares["never"] == 0
    assert stopwatch.shares()["long"] == 0
