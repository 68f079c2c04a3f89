"""Where the time of a loop goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds spent in each of a few named parts, which do not overlap; what is left is ``other``.

    Example:
        >>> stopwatch = Stopwatch("sleeping")
        >>> with stopwatch("sleeping"):
        ...     time.sleep(0.01)
        >>> stopwatch.shares()["sleeping"] > 0.5
        True
    """

    def __init__(self, *parts: str):
        self.parts = parts
        self._start_anew()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - start

    def shares(self) -> dict[str, float]:
        """The share of each part since this was asked last; together they are 1."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        shares = {part: seconds / elapsed for part, seconds in self._seconds.items()}
        self._start_anew()
        return shares | {"other": max(0.0, 1 - sum(shares.values()))}

    def _start_anew(self) -> None:
        self._seconds = dict.fromkeys(self.parts, 0.0)
        self._started = time.perf_counter()
