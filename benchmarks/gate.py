"""A file that a measurement waits for, so that others can be done with theirs first."""

from __future__ import annotations

import time
from pathlib import Path


class Gate:
    """One side `wait`s, which says that it is ready; the other looks whether it `is_ready`, and then opens.

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
        """Say that all is prepared, and return once the gate is open."""
        self._ready.touch()
        while not self.file.exists():
            time.sleep(0.05)

    def open(self) -> None:
        self.file.touch()
