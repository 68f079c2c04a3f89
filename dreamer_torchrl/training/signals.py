"""SIGTERM and Ctrl-C as a wish that the loop grants when it is ready."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType


class StopSignals:
    """While this is entered, SIGTERM and Ctrl-C only set ``requested``; a second Ctrl-C ends the process at once.

    Args:
        say: prints a line.

    Example:
        >>> with StopSignals(print) as stop:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     stop.requested is signal.SIGTERM
        SIGTERM: finishing this update and saving. Ctrl-C exits at once.
        True
    """

    def __init__(self, say: Callable[[str], None]):
        self.say = say
        self.requested: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """0 for SIGTERM, which asks for a clean end, and what shells expect for Ctrl-C."""
        return 130 if self.requested is signal.SIGINT else 0

    def _note(self, number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        if self.requested and received is signal.SIGINT:
            os._exit(130)
        if not self.requested:
            self.requested = received
            self.say(f"{received.name}: finishing this update and saving. Ctrl-C exits at once.")
