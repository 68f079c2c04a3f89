"""Build the kernels with the machine's C compiler, once for each version, machine and precision, and load them."""

import atexit
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path

import torch

from dreamer_torchrl.kernels.structures import checked_header

COMMON = ("-O3", "-march=native", "-fno-math-errno", "-std=gnu11", "-shared", "-fPIC", "-pthread")
FLAGS = {torch.float32: COMMON, torch.float64: (*COMMON, "-DDOUBLE")}  # for each precision that kernels compute in
COMPILERS = ("cc", "gcc", "clang")


class NotBuilt(RuntimeError): ...  # there are no kernels on this machine; the message says why


def available(dtype: torch.dtype) -> bool:
    """Whether the kernels can be used here; builds them where that was not done yet, which takes some seconds."""
    return why_not(dtype) is None


@cache
def why_not(dtype: torch.dtype) -> str | None:
    """What keeps the kernels from being used; None where nothing does."""
    try:
        library(dtype)
    except NotBuilt as error:
        if dtype is not torch.float32:  # of which `status` tells
            warnings.warn(f"Kernels in C do not run in {dtype}, it is slower: {error}", stacklevel=2)
        return str(error)
    return None


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    files = (resources.files(__package__) / "csrc").iterdir()
    sources = {path.name: path.read_bytes() for path in files if path.name.endswith((".c", ".h"))}
    sources["structures.h"] = checked_header().encode()
    compiler = find_compiler()
    try:
        return ctypes.CDLL(str(build(sources, compiler, cache_folder(), FLAGS[dtype])))
    except OSError as error:
        raise NotBuilt(f"The kernels that {compiler} built cannot be loaded: {error}.") from error


def find_compiler() -> str:
    """The compiler to use: ``CC`` where it is set, else the first of the usual ones."""
    asked = os.environ.get("CC")
    for name in (asked,) if asked else COMPILERS:
        if path := shutil.which(name):
            return path
    raise NotBuilt(f"There is no C compiler ({asked or ', '.join(COMPILERS)}): install gcc or clang, or set CC.")


def build(sources: dict[str, bytes], compiler: str, folder: Path, flags: Sequence[str] = COMMON) -> Path:
    """Compile ``kernels.c`` into a folder, unless exactly this was compiled there before; the library's path.

    Where the folder cannot be written, the library lasts as long as this process.
    """
    path = folder / f"kernels-{fingerprint(sources, compiler, flags)}.so"
    if path.is_file():
        return path
    place = Path(tempfile.mkdtemp(prefix="dreamer_torchrl-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    built = _compile(sources, compiler, flags, place)
    unfinished = path.with_name(f"{path.name}.{place.name}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(built.read_bytes())
            os.fsync(file.fileno())
        unfinished.replace(path)  # whole or not at all, whoever else writes it at the same time
    except OSError:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        return built
    return path


def fingerprint(sources: dict[str, bytes], compiler: str, flags: Sequence[str] = COMMON) -> str:
    parts = [*flags, compiler, str(os.stat(compiler).st_mtime_ns), platform.machine(), _processor()]
    text = "\n".join(parts).encode() + b"".join(name.encode() + sources[name] for name in sorted(sources))
    return hashlib.sha256(text).hexdigest()[:16]


def cache_folder() -> Path:
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # a user without a home, as in some containers
        base = os.devnull  # nothing can be written below
    return Path(base) / "dreamer_torchrl"


def _compile(sources: dict[str, bytes], compiler: str, flags: Sequence[str], place: Path) -> Path:
    failed, built = f"{compiler} did not build the kernels:", place / "kernels.so"
    try:
        for name, text in sources.items():
            (place / name).write_bytes(text)
        command = [compiler, *flags, str(place / "kernels.c"), "-o", str(built), "-lm"]
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise NotBuilt(f"{failed} {error}.") from error
    if done.returncode or not built.is_file():
        said = done.stderr.decode(errors="replace").strip()[:500]
        raise NotBuilt(f"{failed} {said or f'it exited with {done.returncode} and left no library'}")
    return built


def _processor() -> str:
    """What the processor can do: -march=native means another thing on another one."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
