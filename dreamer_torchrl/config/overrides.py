"""Overrides, the ``key=value`` of a command line: Hydra parses them, and an invalid one is a one-line error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from dreamer_torchrl.config.checks import ConfigError, as_word, nearest
from dreamer_torchrl.envs.registry import atari_games

GROUPS = ("env", "size", "experiment", "logger")
DEFAULT_ENVIRONMENT = "cartpole"
"""As in config.yaml."""

FREE = ("env.arguments", "eval.arguments", "log.loggers", "agent.encoder", "learner.optimizer")
"""Sections that take entries of any name."""

OTHER_ENVIRONMENTS = (
    " Others: any Atari game, env=gym env.id=..., env=dmc_proprio env.task=..., "
    "env=custom env.factory=package.module:function."
)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Read overrides as Hydra does."""
    parser, parsed = OverridesParser.create(), []
    for override in overrides:
        try:
            parsed.append(parser.parse_override(override))
        except HydraException:
            key, equals, value = override.partition("=")
            if not equals or override.startswith("-"):
                text = f"{override!r} is no override: write key=value, as in seed=1 or env=pendulum."
            else:
                value = f"\"{key.strip()}='{value.strip()}'\""
                text = f"{override!r} cannot be read: write key=value, or quote the value: {value}."
            raise ConfigError(text) from None
    return parsed


def keys(overrides: Sequence[str]) -> list[str]:
    """Which settings overrides are about."""
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


def check_supported(overrides: Sequence[Override], multirun: bool = False) -> None:
    """Refuse what Hydra can and a run cannot."""
    for one in overrides:
        line, key = one.input_line, one.key_or_group
        if one.is_sweep_override() and not multirun:
            raise ConfigError(f"{line!r} asks for several runs: add --multirun to train them all.")
        if key.partition("/")[0].partition(".")[0] == "hydra" and not multirun:
            raise ConfigError(f"{line!r}: settings of Hydra are for --multirun; the folder of a run is run_dir=...")
        if one.is_delete():
            raise ConfigError(f"{line!r} removes a setting, but all are needed: set it, as in experiment=null.")
        if one.package is not None:
            raise ConfigError(f"{line!r} names a package for {key}, but there is only one: write {key}=... instead.")


def for_hydra(overrides: Sequence[Override], names: Iterable[str]) -> list[str]:
    """Overrides but for those of groups; only names that are there, and any in sections that are free."""
    names, lines = set(names), []
    for one in overrides:
        key = one.key_or_group
        if key in GROUPS:
            continue
        section = free_section(key, overrides)
        if key not in names and section not in names:
            hint = " To continue a run give run_dir=FOLDER." if key in ("resume", "checkpoint") else ""
            raise ConfigError(f"There is no setting {key!r}.{hint or nearest(key, {*names, *GROUPS})}")
        lines.append(("++" if section else "") + one.input_line.lstrip("+"))  # a plus is allowed everywhere
    return lines


def free_section(key: str, overrides: Sequence[Override]) -> str | None:
    """The section that takes entries of any name and that this setting is in; an own learner has its own ones."""
    own = ("learner",) if any(one.key_or_group == "learner._target_" for one in overrides) else ()
    return next((name for name in FREE + own if key == name or key.startswith(f"{name}.")), None)


def chosen(overrides: Sequence[Override]) -> list[str]:
    """The choices of groups; an Atari game is an environment, and the experiment follows the environment."""
    groups = {one.key_or_group: one.value() for one in overrides if one.key_or_group in GROUPS}
    follows, game = "experiment" not in groups, []
    groups = {group: as_word(name) for group, name in groups.items()}
    groups |= {group: "none" for group in ("experiment", "logger") if groups.get(group) == "null"}
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
    environment = groups.get("env", DEFAULT_ENVIRONMENT)
    if follows and environment in choices("experiment"):
        groups["experiment"] = environment
    return [*(f"{group}={name}" for group, name in groups.items()), *game]


def experiment_of(overrides: Sequence[str]) -> str | None:
    """The experiment that overrides ask for, by its name or by that of its environment.

    Example:
        >>> experiment_of(["env=pendulum"]), experiment_of(["env=lunarlander"])
        ('pendulum', None)
    """
    name = dict(choice.split("=", 1) for choice in chosen(parse(overrides))).get("experiment")
    return None if name == "none" else name


def choices(group: str) -> dict[str, str]:
    """What a group offers, with the first sentence of each file."""
    folder = resources.files("dreamer_torchrl.configs").joinpath(group)
    found = {}
    for file in folder.iterdir():
        if file.name.endswith(".yaml") and not file.name.startswith("_"):
            lines = [line for line in file.read_text().splitlines() if not line.startswith("# @")]
            comment = lines[: next(index for index, line in enumerate(lines) if not line.startswith("#"))]
            text = " ".join(line.lstrip("# ") for line in comment)
            found[file.name.removesuffix(".yaml")] = text.partition(". ")[0].rstrip(".") + "."
    return dict(sorted(found.items(), key=(lambda item: (len(item[0]), item[0])) if group == "size" else None))
