"""What a run is called: in a line, in a folder's name, and where W&B shows it."""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.config.compose import Configuration, changeable
from dreamer_torchrl.config.overrides import choices, experiment_of, keys
from dreamer_torchrl.config.schema import Settings

LONGEST_TAG, LONGEST_LABEL = 64, 128  # characters that W&B takes
NAMING = ("id", "game", "task", "factory")
SAME = ("seed", "env", "experiment", "logger")  # in the base of a group's name, or averaged over


def describe(settings: Settings) -> str:
    """A short title of a run: ``CartPole-v1, size nano, 5,000 steps, seed 0``."""
    size = size_name(vars(settings.size)) or "own"
    return f"{', '.join(names_of(settings))}, size {size}, {settings.total_steps:,} steps, seed {settings.seed}"


def names_of(settings: Settings) -> list[str]:
    return [str(settings.env.options[key]) for key in NAMING if settings.env.options.get(key)]


def size_name(numbers: Any) -> str | None:
    return next((name for name in choices("size") if vars(Size.named(name)) == numbers), None)


def environment_name(settings: Settings) -> str:
    """The run's environment as part of the name of a folder, such as ``ms-pacman``."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(names_of(settings)).rpartition("/")[2].lower()).strip("-")


def wandb_place(configuration: Configuration, run_dir: Path) -> dict[str, Any]:
    """Project, name and group of a run in W&B: those of the settings, else derived ones."""
    settings, wandb = configuration.settings, configuration.settings.wandb
    size = size_name(vars(settings.size)) or "own"
    names = dict.fromkeys((experiment_of(configuration.overrides), environment_name(settings), size))
    tags = tuple(name[:LONGEST_TAG] for name in names if name)
    folder = run_dir.absolute()
    name = f"{folder.parent.name} {folder.name}" if "=" in folder.name else folder.name  # one of a sweep, or alone
    if f"seed={settings.seed}" not in folder.name.split(","):
        name += f" seed {settings.seed}"
    place = {"project": wandb.project, "entity": wandb.entity, "name": wandb.name or name[-LONGEST_LABEL:]}
    place |= {"group": wandb.group or seeds_group(configuration)}
    return place | {"tags": tags if wandb.tags is None else wandb.tags}


def seeds_group(configuration: Configuration) -> str:
    """What runs have in common that differ only in their seed, such as ``official-cartpole-v1 unimix=0.1``."""
    experiment, environment = experiment_of(configuration.overrides), environment_name(configuration.settings)
    same = experiment and environment.replace("-", "").startswith(re.sub(r"[^a-z0-9]", "", experiment))
    base = experiment if same else "-".join(filter(None, (experiment, environment)))
    given = {keys([one])[0]: one for one in configuration.overrides}  # the last on a setting counts
    compared = [key for key in sorted(given) if key == "train_ratio" or not (key in SAME or changeable(key))]
    group = " ".join([base, *(given[key] for key in compared)])
    return group if len(group) <= LONGEST_LABEL else f"{group[: LONGEST_LABEL - 9]}-{zlib.crc32(group.encode()):08x}"
