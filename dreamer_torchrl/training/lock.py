"""A lock: one process trains in a run directory; a second one gets an error that names it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout


class RunLocked(Exception):
    """Another process trains in the run directory."""


class RunNotWritable(OSError):
    """The run directory cannot be written."""

    def __init__(self, run_dir: Path, error: OSError):
        remedy = "Make room on its disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
        told = f"The run directory {run_dir} cannot be written: {error.strerror or error}."
        super().__init__(f"{told} {remedy}, or give another run_dir.")


@contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """Hold a run directory, which is made if it is missing; the system releases it however the process ends."""
    run_dir = Path(run_dir)
    file, lock = run_dir / "lock", FileLock(run_dir / "lock", timeout=0)
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}, since {since},")
    except Timeout:
        owner = file.read_text() or "another process"  # which is about to write it
        held = f"{run_dir} is in use: {owner} trains there. Wait for it, stop it, or give another run_dir."
        raise RunLocked(held) from None
    except OSError as error:
        lock.release()
        raise RunNotWritable(run_dir, error) from error
    try:
        yield
    finally:
        with suppress(OSError):  # a full or vanished disk: the text is information only
            file.write_text("")
        lock.release()
