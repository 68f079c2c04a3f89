"""Build the kernels with the machine's C compiler, once for each version and machine, and load them."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from importlib import resources
from pathlib import Path

from dreamer_torchrl.kernels.structures import header

FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC", "-pthread")
COMPILERS = ("cc", "gcc", "clang")
SECONDS = 300
"""More than any compiler needs."""
KEPT = 8
"""Libraries in the cache, the newest: those of other versions, compilers and processors that share a home."""


class NotBuilt(RuntimeError):
    """There are no kernels on this machine; the message says why."""


def available() -> bool:
    """Whether the kernels can be used here; builds them where that was not done yet, which takes some seconds."""
    return why_not() is None


@cache
def why_not() -> str | None:
    """What keeps the kernels from being used; None where nothing does."""
    try:
        library()
    except NotBuilt as error:
        return str(error)
    return None


@cache
def library() -> ctypes.CDLL:
    """The kernels, built if need be."""
    sources = {
        path.name: path.read_bytes()
        for path in (resources.files(__package__) / "csrc").iterdir()
        if path.name.endswith((".c", ".h"))
    }
    sources["structures.h"] = header().encode()
    compiler = find_compiler()
    try:
        return ctypes.CDLL(str(build(sources, compiler, cache_folder())))
    except OSError as error:
        raise NotBuilt(f"The kernels that {compiler} built cannot be loaded: {error}.") from error


def find_compiler() -> str:
    """The compiler to use: ``CC`` where it is set, else the first of the usual ones."""
    asked = os.environ.get("CC")
    for name in (asked,) if asked else COMPILERS:
        if path := shutil.which(name):
            return path
    raise NotBuilt(f"There is no C compiler ({asked or ', '.join(COMPILERS)}): install gcc or clang, or set CC.")


def build(sources: dict[str, bytes], compiler: str, folder: Path) -> Path:
    """Compile into a folder, unless exactly this was compiled there before; the library's path.

    A library's name ends with the digest of its content: one that was damaged is not loaded but built again.

    Args:
        sources: text of each file; the one that is compiled is ``kernels.c``.
        compiler: path of a C compiler.
        folder: where libraries are kept; one that lasts as long as this process is taken where it cannot be written.
    """
    mark = fingerprint(sources, compiler)
    for path in folder.glob(f"kernels-{mark}-*.so"):
        if _is_whole(path):
            return path
    content = _compile(sources, compiler)
    name = f"kernels-{mark}-{_digest(content)}.so"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = _write(content, folder / name)
        _prune(folder)
        return path
    except OSError:
        own = Path(tempfile.mkdtemp(prefix="dreamer_torchrl-"))
        atexit.register(shutil.rmtree, own, ignore_errors=True)
        return _write(content, own / name)


def fingerprint(sources: dict[str, bytes], compiler: str) -> str:
    """Changes with the sources, the flags, the compiler and the processor."""
    parts = [*FLAGS, compiler, str(os.stat(compiler).st_mtime_ns), platform.machine(), _processor()]
    text = "\n".join(parts).encode() + b"".join(name.encode() + sources[name] for name in sorted(sources))
    return hashlib.sha256(text).hexdigest()[:16]


def cache_folder() -> Path:
    """Where libraries are kept between processes."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        base = os.devnull  # nothing can be written below
    return Path(base) / "dreamer_torchrl"


def _compile(sources: dict[str, bytes], compiler: str) -> bytes:
    """The content of a library."""
    try:
        with tempfile.TemporaryDirectory() as place:
            for name, text in sources.items():
                Path(place, name).write_bytes(text)
            built = Path(place, "kernels.so")
            command = [compiler, *FLAGS, str(Path(place, "kernels.c")), "-o", str(built), "-lm"]
            done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
            if done.returncode:
                said = done.stderr.decode(errors="replace").strip()[:500]
                raise NotBuilt(f"{compiler} did not build the kernels: {said or f'it exited with {done.returncode}'}")
            return built.read_bytes()
    except subprocess.TimeoutExpired as error:
        raise NotBuilt(f"{compiler} did not build the kernels: it took longer than {SECONDS} seconds.") from error
    except OSError as error:
        raise NotBuilt(f"{compiler} did not build the kernels: {error}.") from error


def _write(content: bytes, target: Path) -> Path:
    """Whole or not at all, whoever else writes it at the same time."""
    handle, unfinished = tempfile.mkstemp(dir=target.parent, prefix=f"{target.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(unfinished, target)
    except OSError:
        Path(unfinished).unlink(missing_ok=True)
        raise
    return target


def _prune(folder: Path) -> None:
    """Remove the oldest libraries; a process that has one loaded keeps it."""
    files = [path for path in folder.glob("kernels-*.so") if path.is_file()]
    for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)[:-KEPT]:
        path.unlink(missing_ok=True)


def _is_whole(path: Path) -> bool:
    """Whether a library still is what was written: loading what is left of one can kill the process."""
    try:
        return path.stem.endswith(f"-{_digest(path.read_bytes())}")
    except OSError:
        return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _processor() -> str:
    """What the processor can do: -march=native means another thing on another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
