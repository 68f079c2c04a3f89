"""From overrides to checked settings, before torch is imported, back from a run's folder; and what a run is called.

`hydra.main` is for sweeps only: it makes a folder before anything is checked, and cannot go on with saved settings.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.config.checks import ConfigError, as_plain, as_word, check_machine, leaves, nearest, validated
from dreamer_torchrl.config.overrides import GROUPS, choices, chosen, experiment_of, free_section, keys, parse, quoted
from dreamer_torchrl.config.schema import LEARNER, EnvironmentSettings, Settings
from dreamer_torchrl.learners.hyperparameters import Hyperparameters

CHANGEABLE = (
    *("run_dir", "total_steps", "train_ratio", "device", "compile", "native", "cuda_graph", "threads", "collector"),
    *("eval", "checkpoint", "log", "wandb", "env.workers", "env.step_timeout", "replay.storage", "replay.prefetch"),
    *("offline_updates", "offline_only"),
)
"""What may differ when a run goes on; all else would make it another run."""

CONFIGS = str(resources.files("dreamer_torchrl.configs"))
VALUES, OVERRIDES = "config.yaml", "overrides.json"  # of a run; the second has the configuration as it was saved, too
LONGEST_TAG, LONGEST_LABEL = 64, 128  # characters that W&B takes
NAMING = ("id", "game", "task", "factory")
SAME = ("seed", "env", "experiment", "logger")  # in the base of a group's name, or averaged over


@dataclass(frozen=True)
class Configuration:
    settings: Settings
    overrides: list[str]
    notes: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, Any]:
        """The whole configuration, plain, as in config.yaml; the opposite of `settings_from`."""
        plain = as_plain(self.settings)
        plain["env"] |= plain["env"].pop("options")
        learner = plain.pop("learner_part") | plain["learner"]
        return plain | {"learner": learner, "run_dir": self.settings.run_dir or None}

    @property
    def text(self) -> str:
        return yaml.safe_dump(self.values, sort_keys=False, explicit_end=True)

    def save(self, folder: Path) -> None:
        """Keep values and overrides with a run; config.yaml comes last: with it the folder is a run."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {"overrides": self.overrides, "saved": leaves(self.values)}
        for name, text in ((OVERRIDES, json.dumps(record, indent=1) + "\n"), (VALUES, self.text)):
            partial = folder / f".{name}.partial"
            with partial.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(folder / name)


def load(overrides: Sequence[str]) -> Configuration:
    """What overrides ask for; of a run that ``run_dir`` holds already, only `CHANGEABLE` settings may differ.

    Example:
        >>> load(["env=pendulum", "seed=3"]).settings.env.options
        {'id': 'Pendulum-v1', 'arguments': {}}
    """
    overrides = [quoted(override) for override in overrides]
    folder = run_folder(overrides)
    if folder is not None and (folder / VALUES).is_file():
        configuration = _continued(folder, overrides)
    elif folder is not None and any((folder / "checkpoints").glob("*")):
        raise ConfigError(f"{folder} has checkpoints but no {VALUES}: put it back, or give another run_dir.")
    else:
        configuration = Configuration(settings_from(composed(overrides)), overrides)
    check_machine(configuration.settings)
    return configuration


def saved_settings(folder: Path, values: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a run, or those of ``values``, for whatever machine this is."""
    values = read_saved(folder) if values is None else in_sections(values)
    device = "cpu" if values.get("device") == "cpu" else "auto"
    return replace(settings_from({**values, "device": device}), run_dir=str(folder))


def read_saved(folder: Path) -> dict[str, Any]:
    """The resolved configuration of a run that is there; changes by hand only where a run may change."""
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
    values = in_sections(values)
    for key, (saved, edited) in _edited(folder, values).items():
        if not changeable(key):
            told = f"{key}={as_word(edited)}, but the run was made with {key}={as_word(saved)}"
            raise ConfigError(f"{file} was edited: {told}. Put that back, or start another run.")
    return values


def in_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Saved values, those from before the collector was a section as well."""
    collector = values.get("collector")
    return {**values, "collector": {"kind": collector}} if isinstance(collector, str) else dict(values)


def composed(overrides: Sequence[str]) -> dict[str, Any]:
    """The whole configuration as plain values; a name must be in its files, or in a section that takes any."""
    parsed = parse(overrides)
    whole = deepcopy(_files(*chosen(parsed)))
    base = _plain(whole)
    parts = [name.split(".") for name in leaves(base)]
    names = {*GROUPS, *(".".join(one[:count]) for one in parts for count in range(1, len(one) + 1))}
    for key in (one.key_or_group for one in parsed):
        if key not in names and free_section(key, parsed) not in names:
            hint = " To continue a run give run_dir=FOLDER." if key in ("resume", "checkpoint") else ""
            raise ConfigError(f"There is no setting {key!r}.{hint or nearest(key, names)}")
    for one in parsed:
        if one.key_or_group not in GROUPS:
            OmegaConf.update(whole, one.key_or_group, one.value(), force_add=True)
    result = _plain(whole)
    return result | {"env": _typed_options(result["env"], base["env"])}


def settings_from(values: Mapping[str, Any]) -> Settings:
    for name in ("env", "learner"):
        if not isinstance(values[name], Mapping):
            raise ConfigError(f"{name}={as_word(values[name])} replaces a whole section: set entries of it.")
    env, options = _apart(values["env"], EnvironmentSettings)
    learner, part = _apart(values["learner"], Hyperparameters)
    part = LEARNER | part
    if part["_target_"] == LEARNER["_target_"]:  # one of your own has arguments of any name
        learner |= {name: part.pop(name) for name in [*part] if name not in LEARNER}
    apart = {"env": {**env, "options": options}, "learner": learner, "learner_part": part}
    return validated(Settings, {**values, **apart, "run_dir": values["run_dir"] or ""})


def changeable(key: str) -> bool:
    return f"{key}.".startswith(tuple(f"{name}." for name in CHANGEABLE))


def _continued(folder: Path, overrides: list[str]) -> Configuration:
    values, (earlier, _) = read_saved(folder), _record(folder)
    before, named, edited = leaves(values), set(keys(overrides)), _edited(folder, values)
    notes = tuple(f"{folder / VALUES} was edited: {key}={as_word(new)}." for key, (_, new) in edited.items())
    overrides = [override for override in earlier if keys([override])[0] not in named] + overrides
    then, now = leaves(composed(earlier)), leaves(composed(overrides))
    for key, value in sorted(now.items(), key=lambda item: item[0] not in named):  # complain of what was asked for
        old = before.get(key, "nothing")
        if key not in named and key in then and value == then[key]:
            now[key] = before.get(key, value)  # what nobody asked for stays as it is saved, whatever defaults are now
        elif not changeable(key) and old != value:
            told = f"{folder} is a run with {key}={as_word(old)}, and now {key}={as_word(value)} is asked for"
            raise ConfigError(f"{told}: leave that out to continue the run, or give another run_dir.")
    whole = OmegaConf.create()
    for key, value in now.items():
        OmegaConf.update(whole, key, value, force_add=True)
    return Configuration(settings_from(OmegaConf.to_container(whole)), overrides, notes)


def _record(folder: Path) -> tuple[list[str], dict[str, Any]]:
    try:
        record = json.loads((folder / OVERRIDES).read_text(encoding="utf-8"))
        saved = {"collector.kind" if name == "collector" else name: value for name, value in record["saved"].items()}
        return list(record["overrides"]), saved
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        told = f"{folder / OVERRIDES} is missing or damaged"
        raise ConfigError(f"{told}: put it back from a copy, or give another run_dir.") from None


def _edited(folder: Path, values: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What was changed by hand in a configuration: the value that was saved, and the one that is there."""
    if not (folder / OVERRIDES).is_file():
        return {}
    saved, there = _record(folder)[1], leaves(values)
    pairs = {name: (saved.get(name, "nothing"), there.get(name, "nothing")) for name in {**saved, **there}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and name != "run_dir"}  # it may be moved


def run_folder(overrides: Sequence[str]) -> Path | None:
    """The folder that the overrides name, the last of them if there are several."""
    values = [override.value() for override in parse(overrides) if override.key_or_group == "run_dir"]
    if not values or values[-1] is None:
        return None
    folder = Path(composed(overrides)["run_dir"] if "${" in str(values[-1]) else str(values[-1]))
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run_dir={folder} is a file: give a folder, or a name that is not there yet.")
    return folder


@contextmanager
def own_hydra() -> Iterator[ConfigLoader]:
    """Hydra on the files of the package, also inside an application or a sweep that uses Hydra."""
    Plugins.instance()  # before the state is taken: a launcher's configuration may be stored only once
    state = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(CONFIGS, version_base="1.3"):
            yield GlobalHydra.instance().config_loader()
    finally:
        Singleton.set_state(state)


@lru_cache  # 0.2 s, and the runs of a sweep often have the same files
def _files(*groups: str) -> DictConfig:
    try:
        with own_hydra():
            return compose("config", list(groups))
    except HydraException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def _plain(config: DictConfig) -> dict[str, Any]:
    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def _apart(values: Mapping[str, Any], kind: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields of a dataclass in a section, and what else the section has."""
    names = {field.name for field in fields(kind)} - {"options"}
    inner = {key: value for key, value in values.items() if key in names}
    return inner, {key: value for key, value in values.items() if key not in names}


def _typed_options(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's own options have no types but those of their defaults; one without a default is a string."""
    typed = dict(values)
    for key, default in _apart(defaults, EnvironmentSettings)[1].items():
        if (values[key], default) != (None, None):
            typed[key] = validated(str if default is None else type(default), values[key], f"env.{key}")
    return typed


def describe(settings: Settings) -> str:
    """A short title of a run: ``CartPole-v1, size nano, 5,000 steps, seed 0``."""
    size = size_name(vars(settings.size)) or "own"
    length = [f"{settings.updates_before:,} updates on recorded data"] if settings.offline else []
    length += [f"{steps:,} steps"] if (steps := settings.end - settings.updates_before) else []
    return f"{', '.join(names_of(settings))}, size {size}, {', '.join(length)}, seed {settings.seed}"


def names_of(settings: Settings) -> list[str]:
    return [str(settings.env.options[key]) for key in NAMING if settings.env.options.get(key)] or ["recorded data"]


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
