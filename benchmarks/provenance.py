"""Where a measurement comes from: command, commit, versions and machine."""

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

VARIABLES = ("THP_MEM_ALLOC_ENABLE", "OMP_NUM_THREADS")
"""Environment variables that affect timings."""

PACKAGES = ("dreamer_torchrl", "torch", "tensordict", "torchrl", "numpy")


def provenance(device: torch.device) -> dict:
    """What is needed to repeat a measurement of this process."""
    return {
        "command": " ".join([*_variables(), shlex.join(["python", *sys.argv])]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "machine": _machine(device),
    }


def _variables() -> list[str]:
    return [f"{name}={shlex.quote(os.environ[name])}" for name in VARIABLES if name in os.environ]


def _commit() -> str | None:
    """The commit of this checkout, marked `-dirty` where tracked files differ from it."""
    describe = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        return subprocess.run(
            describe, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine(device: torch.device) -> dict:
    machine = {
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }
    if device.type == "cuda":
        machine |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return machine


def _cpu() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.processor()
