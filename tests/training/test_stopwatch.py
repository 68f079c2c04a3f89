"""Where the time goes: parts, what is left, and a new count each time."""

from __future__ import annotations

import time

import pytest

from dreamer_torchrl.training.stopwatch import Stopwatch


def test_shares_are_those_of_the_time_since_they_were_asked_for() -> None:
    stopwatch = Stopwatch("long", "short", "never")
    for _ in range(2):  # the second time tells nothing of the first
        with stopwatch("long"):
            time.sleep(0.06)
        with stopwatch("short"):
            time.sleep(0.02)
        time.sleep(0.02)
        shares = stopwatch.shares()
        assert list(shares) == ["long", "short", "never", "other"]
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["long"] > 2 * shares["short"] > 0
        assert shares["never"] == 0
        assert shares["other"] > 0
        with stopwatch("short"):
            time.sleep(0.01)
        assert stopwatch.shares()["short"] > 0.8


def test_a_part_that_raises_is_counted() -> None:
    stopwatch = Stopwatch("broken")
    with pytest.raises(ZeroDivisionError), stopwatch("broken"):
        time.sleep(0.01)
        _ = 1 / 0
    assert stopwatch.shares()["broken"] > 0.5


def test_a_part_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match="learnr"), Stopwatch("learner")("learnr"):
        pass
