"""A lock: one process trains in a run directory; a second one gets an error that names it."""

from __future__ import annotations

import errno
import json
import os
import shlex
import socket
import sys
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout


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

    The operating system releases the lock when the process ends, however it ends, so a lock is never stale. The text of
    the file only says who holds it. A missing ``run_dir`` is created.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as run_dir, RunLock(run_dir):
        ...     (Path(run_dir) / "lock").read_text() != ""
        True
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = Path(run_dir)
        self._lock = FileLock(self.run_dir / "lock", timeout=0)

    def __enter__(self) -> RunLock:
        path = self.run_dir / "lock"
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            path.write_text(_this_process())
        except Timeout:
            raise RunLocked(
                f"{self.run_dir} is in use: {_owner(path)} trains there. Wait for it, stop it, or give another run_dir."
            ) from None
        except OSError as error:
            self._lock.release()
            raise RunNotWritable.because(self.run_dir, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # a full or vanished disk: the text is information only
            (self.run_dir / "lock").write_text("")
        self._lock.release()


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
