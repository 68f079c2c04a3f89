"""What every test may count on: fixed seeds, one thread, and property tests without a stopwatch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

# Before torch is loaded, and for the processes that tests start: more threads than cores are many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# A busy machine is slow, not wrong. In CI the same examples come every time; elsewhere new ones are tried.
settings.register_profile("house", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("house")


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start each test from the same random numbers, whichever tests ran before."""
    import torch  # here: the process that hands tests to others needs none

    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """How a test sets the number of torch's threads; afterwards it is as before, whoever has changed it."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
