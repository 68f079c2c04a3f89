"""What the replay of a run will need, and what there is: known before anything is made."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.collectors.stream_envs import StreamEnvs
from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.config.schema import Settings
from dreamer_torchrl.data.replay import SCRATCH, bytes_per_step, latent_bytes
from dreamer_torchrl.record.console import size
from dreamer_torchrl.training.build import agent_of, exact_latents, latent_dtype, most_steps, replay_device


def replay_size(
    settings: Settings, envs: StreamEnvs | Specs, run_dir: Path, continued: bool = False, recorded: int = 0
) -> str:
    """Say what the replay will need; more than there is raises `ConfigError` with the setting that would fit."""
    with torch.device("meta"):  # an agent without memory
        agent = agent_of(settings, envs)
    dtype = latent_dtype(settings)
    whole = bytes_per_step(agent, dtype)
    copied = latent_bytes(agent, dtype) if exact_latents(settings) else 0  # in a save, where all have changed
    steps, storage = min(settings.replay.capacity, most_steps(settings, recorded)), settings.replay.storage
    on_disk = storage == "disk"
    left = sum(file.stat().st_blocks * 512 for file in (run_dir / SCRATCH).rglob("*") if file.is_file())  # is removed
    free = {"memory": free_memory(), "disk": shutil.disk_usage(run_dir).free + left}
    in_memory, from_disk = {"memory": whole + copied}, {"disk": whole, "memory": copied}  # bytes per step
    needs = from_disk if on_disk else in_memory
    if storage == "cuda":
        needs = {"GPU memory": whole, "memory": copied}
        free["GPU memory"] = torch.cuda.mem_get_info(replay_device(settings))[0]
    least = (settings.replay.length + settings.learner.context) * settings.env.num_envs
    for place, per_step in needs.items():
        if steps * per_step > free[place]:
            fitting = min(int(0.8 * free[other]) // part for other, part in needs.items() if part)
            smaller = "make room, give a smaller total_steps" if continued else None
            remedy = smaller or f"give replay.capacity={max(fitting, least)}"
            if storage == "memory" and all(steps * part <= free[other] for other, part in from_disk.items()):
                remedy += " or replay.storage=disk"
            named = f"disk in {run_dir}" if place == "disk" else place
            named += f" (saves copy {copied:,} of each)" if place == "memory" and copied else ""
            needed = f"The replay of {steps:,} steps of {whole:,} bytes needs {size(steps * per_step)} of {named}"
            raise ConfigError(f"{needed}, {size(free[place])} are free: {remedy}.")
    where = f"disk in {run_dir}" if on_disk else next(iter(needs))
    more = f"up to {size(steps * copied)} of memory more in a save" if copied else "a save copies what is new"
    return f"Replay: {whole:,} bytes a step, {size(steps * whole)} of {where} for {steps:,} steps; {more}."


def free_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of memory that this process can still have, in a container or a batch job as well."""
    if not (proc / "meminfo").exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    entries = dict(line.split(":") for line in (proc / "meminfo").read_text().splitlines())
    free = int(entries["MemAvailable"].split()[0]) * 1024
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        folder = groups / path.lstrip("/")
        for place in () if controllers else (folder, *folder.parents):  # each group has what the ones above it leave
            limit = place / "memory.max"
            if limit.is_file() and limit.read_text().strip() != "max":
                counts = dict(entry.split() for entry in (place / "memory.stat").read_text().splitlines())
                used = int((place / "memory.current").read_text()) - int(counts.get("inactive_file", 0))
                free = min(free, int(limit.read_text()) - used)  # inactive files are given back on demand
            if place == groups:
                break
    return max(free, 0)
