"""SIGTERM and Ctrl-C: the loop finishes its update and saves; if it cannot, the process ends all the same."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread, current_thread, main_thread

ADVANCE = (signal.SIGUSR1, signal.SIGUSR2)  # before a cluster's time limit, to all processes of a job or to one
SIGNALS = (signal.SIGTERM, signal.SIGINT, *ADVANCE)
GRACE_SECONDS = 8.0  # for the loop to notice a request, and for the program to end after the last save
INTERRUPTED_SECONDS = 3.0  # until a request interrupts what may be interrupted
REPEATED_SECONDS = 0.3  # a launcher passes on the signal that its whole group got: this soon it is the same request


class Interrupted(BaseException):
    """Raised in the main thread inside of `StopSignals.interruptible`; no ``except Exception`` catches it."""


class StopSignals:
    """While this is entered, a first SIGTERM or Ctrl-C sets ``requested``, and a second one ends the process.

    SIGUSR1 and SIGUSR2 are as a first SIGTERM, and never a second one.

    A thread receives them, so both work while the main thread is inside an environment or a long operation. Where the
    loop has not reached `saving` after ``seconds``, the process ends without. Outside the main thread it does nothing.
    """

    def __init__(self, say: Callable[[str], None], seconds: float = GRACE_SECONDS):
        self.say, self.seconds = say, seconds
        self.requested: signal.Signals | None = None
        self.saved = self._saving = self._interruptible = False
        self._asked_at = self._deadline = 0.0
        self._handlers: dict[signal.Signals, object] = {}
        self._lock = Lock()  # so that no reminder comes when its handler is gone, which would end the process

    def __enter__(self) -> StopSignals:
        if current_thread() is main_thread():
            self._reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._handlers = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}
            self._handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._interrupt)
            os.register_at_fork(after_in_child=self._restore)
            Thread(target=self._watch, name="stop-signals", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._handlers:
            with self._lock:
                self._restore()
            self._writer.close()  # ends the thread

    @property
    def exit_code(self) -> int:
        """What shells expect for Ctrl-C, and 0 for the others, which ask for a clean end."""
        return 130 if self.requested is signal.SIGINT else 0

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Work inside that may be given up: `Interrupted` is raised in it some seconds after a request."""
        self._interruptible = True
        try:
            yield
        finally:
            self._interruptible = False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Save the last state inside: however long it takes, only a second signal ends it."""
        self._saving = True
        try:
            yield
            self.saved = True
        finally:
            self._deadline = time.monotonic() + self.seconds
            self._saving = False

    def _watch(self) -> None:
        """Receive the numbers of signals; Python writes them to the socket whatever the main thread does."""
        with self._reader:
            while True:
                try:
                    number = self._reader.recv(1)
                except TimeoutError:
                    self._urge()
                    continue
                if not number:
                    return
                if number[0] in SIGNALS:
                    self._receive(signal.Signals(number[0]))

    def _receive(self, received: signal.Signals) -> None:
        now = time.monotonic()
        if self.requested:
            if received not in ADVANCE and now - self._asked_at > REPEATED_SECONDS:
                os._exit(128 + received)
            return
        self._asked_at, self._deadline = now, now + self.seconds
        self._say(f"{received.name}: finishing this update and saving. A second signal exits at once.")
        self.requested = received
        self._reader.settimeout(0.5)

    def _urge(self) -> None:
        """Interrupt the main thread, again and again, as it may be where it cannot be interrupted; in the end leave."""
        now = time.monotonic()
        if now > self._deadline and not self._saving:
            self._leave()
        with self._lock:
            if self._handlers and now > self._asked_at + INTERRUPTED_SECONDS:
                signal.pthread_kill(main_thread().ident, signal.SIGALRM)

    def _interrupt(self, *_: object) -> None:
        if self._interruptible and self.requested:
            raise Interrupted

    def _leave(self) -> None:
        number = self.requested
        if self.saved:
            self._say(f"{number.name}: saved; not waiting longer for what is still open.")
            os._exit(self.exit_code)
        done = "Ended without saving; the last checkpoint is unchanged."
        self._say(f"{number.name}: no update was finished within {self.seconds:g} s. {done}")
        os._exit(128 + number)

    def _say(self, text: str) -> None:
        """Print, unless whoever reads the output keeps it waiting."""
        thread = Thread(target=self.say, args=(text,), daemon=True)
        thread.start()
        thread.join(1.0)

    def _restore(self) -> None:
        """Give the signals back, at the end and in a forked child."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
        self._handlers = {}
