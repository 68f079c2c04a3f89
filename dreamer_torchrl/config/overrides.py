"""Overrides, the ``key=value`` of a command line: Hydra parses them, and an invalid one is a one-line error."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from itertools import takewhile
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from dreamer_torchrl.config.checks import ConfigError, as_word, nearest
from dreamer_torchrl.envs.registry import atari_games

GROUPS = ("env", "size", "latent", "core", "algorithm", "representation", "exploration", "collector")
GROUPS += ("experiment", "logger")
# What null means in these
NULL = {"experiment": "laptop", "logger": "none", "exploration": "none", "representation": "decoder"}
PARTS = ("encoder", "decoder", "layers", "core", "latent", "reward", "continuation", "value", "actor")  # of the agent
FREE = ("env.arguments", "eval.arguments", "log.loggers", "learner.optimizer")  # take any entries
FREE += ("exploration.behaviour", "representation.term")
FREE += tuple(f"agent.{part}" for part in PARTS)
OTHER_ENVIRONMENTS = " Others: any Atari game, env=gym env.id=..., env=dmc_proprio env.task=..., "
OTHER_ENVIRONMENTS += "env=custom env.factory=package.module:function."


def parse(overrides: Sequence[str], files: ConfigLoader | None = None) -> list[Override]:
    """Read overrides as Hydra does, those of a sweep with ``files``; what Hydra can and a run cannot is refused."""
    parser, parsed = OverridesParser.create(files), []
    for text in overrides:
        try:
            (one,) = parser.parse_overrides([text])  # with the files, which glob needs
        except HydraException:
            key, equals, value = map(str.strip, text.partition("="))
            told = "is no override: write key=value, as in seed=1 or env=pendulum."
            if equals and not text.startswith("-"):
                told = f"cannot be read: write key=value, or quote the value: \"{key}='{value}'\"."
            raise ConfigError(f"{text!r} {told}") from None
        if one.is_delete():
            raise ConfigError(f"{text!r} removes a setting, but all are needed: set it, as in experiment=null.")
        if one.package is not None:
            key = one.key_or_group
            raise ConfigError(f"{text!r} names a package for {key}, but there is only one: write {key}=... instead.")
        if files is None and one.is_sweep_override():
            raise ConfigError(f"{text!r} asks for several runs: add --multirun to train them all.")
        if files is None and is_hydras(one):
            raise ConfigError(f"{text!r}: settings of Hydra are for --multirun; the folder of a run is run_dir=...")
        parsed.append(one)
    return parsed


def is_hydras(override: Override) -> bool:
    """Whether it is about Hydra itself, as ``hydra/launcher=joblib`` is."""
    return override.key_or_group.replace("/", ".").partition(".")[0] == "hydra"


def keys(overrides: Sequence[str]) -> list[str]:
    return [override.key_or_group for override in parse(overrides)]


def quoted(override: str) -> str:
    """Quote the path of a run, so that Hydra takes it as it is, unless it is quoted or null."""
    key, equals, path = override.partition("=")
    if key.lstrip("+") != "run_dir" or not equals or path[:1] in ("'", '"') or path == "null":
        return override
    if not path:
        raise ConfigError("run_dir= names no folder (an unset shell variable?): give one, or leave run_dir out.")
    path = str(Path(path).expanduser()).replace("'", "\\'")
    return f"run_dir='{path}'"


def free_section(key: str, overrides: Sequence[Override]) -> str | None:
    """The section that takes entries of any name and that this setting is in; an own learner has its own ones."""
    own = ("learner",) if any(one.key_or_group == "learner._target_" for one in overrides) else ()
    return next((name for name in FREE + own if key == name or key.startswith(f"{name}.")), None)


def chosen(overrides: Sequence[Override]) -> list[str]:
    """The choices of groups; an Atari game is an environment, and the experiment follows the environment."""
    groups = {one.key_or_group: as_word(one.value()) for one in overrides if one.key_or_group in GROUPS}
    follows, game = "experiment" not in groups, []
    groups |= {
        group: name for group, name in (("experiment", "laptop"), ("logger", "none")) if groups.get(group) == "null"
    }
    for group, name in groups.items():
        known = choices(group)
        games = atari_games() if group == "env" and name not in known else ()
        if name in games:
            groups["env"] = "atari100k" if groups.get("experiment") == "atari100k" else "atari"
            game = [f"env.game={name}"]
        elif name not in known:
            others = OTHER_ENVIRONMENTS if group == "env" else ""
            hint = nearest(name, [*known, *games])
            raise ConfigError(f"There is no {group} {name!r}.{hint} There are: {', '.join(known)}.{others}")
    environment = groups.get("env", "cartpole")  # as in config.yaml
    if follows:
        groups["experiment"] = environment if environment in choices("experiment") else "laptop"
    return [*(f"{group}={name}" for group, name in groups.items()), *game]


def experiment_of(overrides: Sequence[str]) -> str | None:
    """The official experiment that overrides ask for, by its name or by that of its environment; None: laptop."""
    name = dict(choice.split("=", 1) for choice in chosen(parse(overrides))).get("experiment")
    return None if name == "laptop" else name


def choices(group: str) -> dict[str, str]:
    """What a group offers, with the first sentence of each file."""
    found = {}
    for file in resources.files("dreamer_torchrl.configs").joinpath(group).iterdir():
        if file.name.endswith(".yaml") and not file.name.startswith("_"):
            lines = (line for line in file.read_text().splitlines() if not line.startswith("# @"))
            text = " ".join(line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
            found[file.name.removesuffix(".yaml")] = text.partition(". ")[0].rstrip(".") + "."
    return dict(sorted(found.items(), key=lambda item: (len(item[0]) if group == "size" else 0, item[0])))
