"""A file-based barrier: a measurement waits until the others are done."""

from __future__ import annotations

import time
from pathlib import Path


class Gate:
    """One process signals readiness and waits; the other polls `is_ready`, then opens.

    Args:
        file: its presence is the open gate; beside it lies ``<file>.ready``.
    """

    def __init__(self, file: str | Path):
        self.file = Path(file)
        self._ready = self.file.with_name(f"{self.file.name}.ready")

    @property
    def is_ready(self) -> bool:
        return self._ready.exists()

    def wait(self) -> None:
        """Signal readiness, and return once the gate is open."""
        self._ready.touch()
        while not self.file.exists():
            time.sleep(0.05)

    def open(self) -> None:
        self.file.touch()
