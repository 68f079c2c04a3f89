"""The page of a run, kept fresh while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dreamer_torchrl.views.report_page import NAME, write_report

QUICK, MOST_TIME = 1.0, 0.02
"""Seconds of a page that is written at each evaluation; others take at most this share of the time."""


class Reports:
    """Keep the page of a run fresh while it trains, whatever happens to the page.

    Args:
        run_dir: folder of the run.
        note: takes a line that says where it is in the end, or what went wrong, once.
    """

    def __init__(self, run_dir: Path, note: Callable[[str], None]):
        self.run_dir, self.note = run_dir, note
        self.failed = False
        self._written, self._seconds = 0.0, 0.0

    def refresh(self, at_end: bool = False) -> None:
        """Write it anew. Of a run so long that this takes its time, it is a small share of the time of training."""
        started = time.monotonic()
        if self._seconds > QUICK and started - self._written < self._seconds / MOST_TIME and not at_end:
            return
        try:
            path = write_report(self.run_dir)
            if at_end:
                self.note(f"Report: {path}")
        except Exception as error:  # no page is worth a run
            if not self.failed:
                self.note(f"{NAME} was not written ({type(error).__name__}: {error}); training goes on.")
            self.failed = True
        self._written = time.monotonic()
        self._seconds = self._written - started
