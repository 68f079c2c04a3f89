"""Reading W&B's files back with its own reader, in processes that know nothing of this machine's W&B."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from dreamer_torchrl.kernels.compiling import cache_folder

ROOT = Path(__file__).parents[2]
OWN_COLUMNS = {"_runtime", "_timestamp"}


def environment(home: Path, **variables: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("WANDB", "NETRC"))}
    kept = {key: value for key, value in kept.items() if not key.lower().endswith("_proxy")}
    kernels = {"XDG_CACHE_HOME": str(cache_folder().parent)}  # they need not be built again for each home
    return kept | {"HOME": str(home), "WANDB_CACHE_DIR": str(home), "PYTHONPATH": str(ROOT)} | kernels | variables


def offline_folders(run_dir: Path) -> list[Path]:
    return sorted((run_dir / "wandb").glob("offline-run-*"))


@lru_cache
def inspected(folder: Path) -> list[dict[str, Any]]:
    """All records in the file of a run that has ended, as the wandb library reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", str(folder), "--json"]
    text = subprocess.run(
        command, env=environment(folder), capture_output=True, text=True, check=True, timeout=300
    ).stdout
    return [json.loads(line) for line in text.splitlines()]


def records(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in inspected(folder) if record["type"] == kind]


def rows(folder: Path) -> list[dict[str, Any]]:
    items = [record["item"] for record in records(folder, "history")]
    return [{key: value for key, value in item.items() if key not in OWN_COLUMNS} for item in items]
