"""From words on a command line to checked settings, before torch is imported.

Hydra composes, this file checks: a word that names nothing, a value of the wrong type or an impossible one ends in a
`ConfigError`, whose message says what is nearest or what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamer_torchrl.config.checks import ConfigError, as_plain, as_word, build, check, leaves, nearest, typed
from dreamer_torchrl.config.schema import EnvironmentSettings, Settings
from dreamer_torchrl.config.words import as_path, parse, refuse
from dreamer_torchrl.envs.registry import atari_games

GROUPS = ("env", "size", "experiment", "logger")
DEFAULT_ENVIRONMENT = "cartpole"
"""As in config.yaml; its experiment is what runs when nothing is asked for."""

CHANGEABLE = (
    *("run_dir", "total_steps", "train_ratio", "device", "compile", "native", "threads"),
    *("eval", "checkpoint", "log", "wandb", "collector", "env.workers", "env.step_timeout", "replay.storage"),
)
"""What may differ when a run goes on; all else would make it another run."""

VALUES, WORDS = "config.yaml", "overrides.json"
"""Files of a run."""

ARGUMENTS = ("env.arguments", "eval.arguments", "log.loggers")
"""Where a user may add names of his own."""

OTHER_ENVIRONMENTS = (
    " Others: any Atari game, env=gym env.id=..., env=dmc_proprio env.task=..., "
    "env=custom env.factory=package.module:function."
)


@dataclass(frozen=True)
class Configuration:
    """Settings, the plain values they are made of, and the words that asked for them."""

    settings: Settings
    values: dict[str, Any]
    words: list[str]

    def save(self, folder: Path) -> None:
        """Keep values and words with a run."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            (WORDS, json.dumps(self.words, indent=1) + "\n"),
            (
                VALUES,
                yaml.safe_dump(self.values, sort_keys=False, explicit_end=True),
            ),  # last: its presence makes the folder a run
        ):
            partial = folder / f".{name}.partial"
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(folder / name)


def load(words: Sequence[str]) -> Configuration:
    """What overrides such as ``["env=pendulum", "seed=1"]`` ask for.

    If ``run_dir`` holds a run already, that run's settings stay, and only those may differ that leave it the same run.

    Example:
        >>> load(["env=pendulum", "seed=3"]).settings.env.options
        {'id': 'Pendulum-v1', 'arguments': {}}
    """
    words = [as_path(word) for word in words]
    folder = _run_dir(words)
    if folder is not None and (folder / VALUES).is_file():
        return _continued(folder, words)
    if folder is not None and any((folder / "checkpoints").glob("*")):
        raise ConfigError(f"{folder} has checkpoints but no {VALUES}: put it back, or give another run_dir.")
    return _configuration(composed(words), words)


def saved_settings(folder: Path) -> Settings:
    """The settings of a run that is there, for whatever GPUs this machine has."""
    values = read_saved(folder)
    device = "cpu" if values.get("device") == "cpu" else "auto"
    return replace(settings_from({**values, "device": device}), run_dir=str(folder))


def read_saved(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run that is there."""
    file = folder / VALUES
    if not file.is_file():
        raise ConfigError(f"{folder} is no run: there is no {VALUES} in it. Give the folder that training printed.")
    try:
        text = file.read_text(encoding="utf-8")
        values = yaml.safe_load(text) if text.rstrip().endswith("\n...") else None  # a part of it may be YAML too
    except (yaml.YAMLError, UnicodeDecodeError):
        values = None
    if not (isinstance(values, dict) and isinstance(values.get("env"), dict) and "run_dir" in values):
        raise ConfigError(f"{file} is damaged: put it back from a copy, or give another run_dir.")
    return values


def read_words(folder: Path) -> list[str]:
    """The words that a run was started with."""
    file = folder / WORDS
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        words = None
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise ConfigError(f"{file} is missing or damaged: put it back from a copy, or give another run_dir.")
    return words


def composed(words: Sequence[str]) -> dict[str, Any]:
    """The whole configuration as plain values, every name in the words checked."""
    overrides = parse(words)
    for override in overrides:
        refuse(override)
    chosen = _choose(_groups(overrides))
    base = deepcopy(_base(tuple(chosen)))
    names = {*leaves(base), *_branches(base)}
    lines = []
    for override in overrides:
        key = override.key_or_group
        if key in GROUPS:
            continue
        argument = any(key == name or key.startswith(name + ".") for name in ARGUMENTS if name in names)
        if key not in names and not argument:
            raise ConfigError(f"There is no setting {key!r}.{nearest(key, {*names, *GROUPS})}")
        # A plus is welcome everywhere, and needed nowhere: only arguments can be new.
        lines.append(("++" if argument else "") + override.input_line.lstrip("+"))
    result = _compose([*chosen, *lines]) if lines else base
    return result | {"env": _typed_options(result["env"], base["env"])}


def settings_from(values: Mapping[str, Any]) -> Settings:
    """Checked settings from a whole configuration."""
    settings = build(Settings, {**values, "env": _split(values["env"]), "run_dir": values["run_dir"] or ""})
    _check_frames(settings.env)
    check(settings)
    return settings


def experiment_of(words: Sequence[str]) -> str | None:
    """The experiment that words ask for, by its name or by that of its environment.

    Example:
        >>> experiment_of(["env=pendulum"]), experiment_of(["env=lunarlander"])
        ('pendulum', None)
    """
    chosen = dict(word.split("=", 1) for word in _choose(_groups(parse(words))))
    return chosen.get("experiment")


def choices(group: str) -> dict[str, str]:
    """What a group offers, with the first line of each file."""
    folder = resources.files("dreamer_torchrl.configs").joinpath(group)
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".yaml") and not file.name.startswith("_"):
            lines = [line for line in file.read_text().splitlines() if not line.startswith("# @")]
            found[file.name.removesuffix(".yaml")] = lines[0].lstrip("# ")
    return dict(sorted(found.items(), key=_by_length if group == "size" else None))


def _configuration(values: Mapping[str, Any], words: list[str]) -> Configuration:
    settings = settings_from(values)
    plain = as_plain(settings)
    environment = plain["env"]
    options = environment.pop("options")
    return Configuration(settings, plain | {"env": environment | options, "run_dir": settings.run_dir or None}, words)


def _continued(folder: Path, words: list[str]) -> Configuration:
    """The configuration of a run that is there, with what may be changed in it."""
    before, earlier = leaves(read_saved(folder)), read_words(folder)
    named = {override.key_or_group for override in parse(words)}
    words = [word for word in earlier if parse([word])[0].key_or_group not in named] + words
    then, now = leaves(composed(earlier)), leaves(composed(words))
    for key, value in sorted(now.items(), key=lambda item: item[0] not in named):  # complain of what was asked for
        # What nobody asked for stays as it is saved, whatever the defaults are by now.
        if key not in named and key in then and value == then[key]:
            now[key] = before.get(key, value)
        elif not _changeable(key) and (key not in before or before[key] != value):
            old = as_word(before[key]) if key in before else "nothing"
            raise ConfigError(
                f"{folder} is a run with {key}={old}, and now {key}={as_word(value)} is asked for: "
                "leave that out to continue the run, or give another run_dir."
            )
    return _configuration(_branched(now), words)


def _changeable(key: str) -> bool:
    return any(key == name or key.startswith(name + ".") for name in CHANGEABLE)


def _check_frames(env: EnvironmentSettings) -> None:
    """What an Atari game skips is what is counted: ``frames_per_action`` follows from it, see `configs/env`."""
    skip = env.options.get("frame_skip")
    if skip is None:  # another family, or a run from before it could be set
        return
    if skip < 1:
        raise ConfigError(f"env.frame_skip={skip} is impossible: give at least 1.")
    if env.frames_per_action != skip:
        raise ConfigError(
            f"env.frames_per_action={env.frames_per_action} is impossible: an action of this game lasts {skip} frames. "
            "Leave that out, and set env.frame_skip."
        )


def _run_dir(words: Sequence[str]) -> Path | None:
    """The folder that the words name, the last of them if there are several."""
    values = [override.value() for override in parse(words) if override.key_or_group == "run_dir"]
    if not values or values[-1] is None:
        return None
    value = str(values[-1])
    folder = Path(composed(words)["run_dir"] if "${" in value else value)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder} is a file: give a folder, or a name that is not there yet.")
    return folder


def _groups(overrides: Sequence[Override]) -> dict[str, Any]:
    return {override.key_or_group: override.value() for override in overrides if override.key_or_group in GROUPS}


def _choose(groups: Mapping[str, Any]) -> list[str]:
    """Group choices as words, names checked; an Atari game is an environment, and the experiment follows it."""
    follows = "experiment" not in groups
    groups = {group: as_word(name) for group, name in groups.items() if (group, name) != ("experiment", None)}
    if groups.get("logger") == "null":
        groups["logger"] = "none"
    extra = []
    for group, name in groups.items():
        known = choices(group)
        games = atari_games() if group == "env" and name not in known else ()
        if name in games:
            groups["env"] = "atari100k" if groups.get("experiment") == "atari100k" else "atari"
            extra.append(f"env.game={name}")
        elif name not in known:
            raise ConfigError(
                f"There is no {group} {name!r}.{nearest(name, [*known, *games])} There are: {', '.join(known)}."
                + (OTHER_ENVIRONMENTS if group == "env" else "")
            )
    environment = groups.get("env", DEFAULT_ENVIRONMENT)
    if follows and environment in choices("experiment"):
        groups["experiment"] = environment
    return [*(f"{group}={name}" for group, name in groups.items()), *extra]


@cache
def _base(chosen: tuple[str, ...]) -> dict[str, Any]:
    """The files alone; the runs of a sweep often have the same ones."""
    return _compose(chosen)


def _compose(words: Sequence[str]) -> dict[str, Any]:
    folder = str(resources.files("dreamer_torchrl.configs"))
    try:
        with initialize_config_dir(folder, version_base="1.3"):
            return OmegaConf.to_container(compose("config", list(words)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def _own(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the section ``env`` has beside that which all environments have."""
    common = {field.name for field in fields(EnvironmentSettings)} - {"options"}
    return {key: value for key, value in values.items() if key not in common}


def _split(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the family's own options of the section ``env`` in a place of their own."""
    own = _own(values)
    return {key: value for key, value in values.items() if key not in own} | {"options": own}


def _typed_options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's own options have no types but those of their defaults; one without a default is a word."""
    kinds = {key: str if default is None else type(default) for key, default in _own(defaults).items()}
    typed_ones = {
        key: typed(kinds[key], value, f"env.{key}")
        for key, value in _own(values).items()
        if key in kinds and not (value is None and defaults[key] is None)
    }
    return {**values, **typed_ones}


def _branches(values: Mapping[str, Any], path: str = "") -> list[str]:
    inner = [(f"{path}{key}", value) for key, value in values.items() if isinstance(value, Mapping)]
    return [name for name, _ in inner] + [deep for name, value in inner for deep in _branches(value, name + ".")]


def _branched(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `leaves`."""
    values: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split(".")
        branch = values
        for key in path:
            branch = branch.setdefault(key, {})
        branch[last] = value
    return values


def _by_length(item: tuple[str, str]) -> tuple[int, str]:
    return len(item[0]), item[0]
