"""A lock: one process trains in a run directory; a second one gets an error that names it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
from datetime import datetime
from pathlib import Path
from types import TracebackType


class RunLocked(Exception):
    """Another process trains in the run directory."""


class RunNotWritable(OSError):
    """The run directory cannot be written."""

    @classmethod
    def because(cls, run_dir: Path, error: OSError) -> RunNotWritable:
        """With the system's reason."""
        remedy = "Make room on its disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
        return cls(
            f"The run directory {run_dir} cannot be written: {error.strerror or error}. "
            f"{remedy}, or give another run_dir."
        )


class RunLock:
    """Hold a run directory while training in it.

    The system itself lets go of the lock when the process ends, however it ends, so that a lock is never stale. The
    text of the file only says who holds it.

    Args:
        run_dir: is made where it is missing.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as run_dir, RunLock(run_dir):
        ...     (Path(run_dir) / "lock").read_text() != ""
        True
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir)
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        path = self.run_dir / "lock"
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunNotWritable.because(self.run_dir, error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(descriptor, 0)
            os.write(descriptor, _this_process().encode())
        except BlockingIOError:
            os.close(descriptor)
            raise RunLocked(
                f"{self.run_dir} is in use: {_owner(path)} trains there. Wait for it, stop it, or give another run_dir."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise RunNotWritable.because(self.run_dir, error) from error
        self._descriptor = descriptor
        # A forked child shares the lock, and would keep it after its parent was killed.
        os.register_at_fork(after_in_child=self._let_go)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None:
            os.truncate(self._descriptor, 0)
        self._let_go()

    def _let_go(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _this_process() -> str:
    started = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": started, "command": shlex.join(sys.orig_argv)}
    return json.dumps(owner, indent=2) + "\n"


def _owner(path: Path) -> str:
    try:
        owner = json.loads(path.read_text())
        return f"process {owner['pid']} on {owner['host']}, since {owner['since']},"
    except (OSError, ValueError, TypeError, KeyError):  # the owner is about to write it
        return "another process"
