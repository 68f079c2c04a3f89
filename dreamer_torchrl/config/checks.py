"""From plain values to checked settings and parts: errors are one line, with the nearest valid name."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from dreamer_torchrl.config.schema import CHECKED, Settings
from dreamer_torchrl.envs.registry import check_env, module_source
from dreamer_torchrl.limits import ConfigError


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as `` Did you mean 'seed'?``, by the whole name or its last part; empty if nothing is near."""
    known = sorted(known)
    by_last = {other.rpartition(".")[2]: other for other in known}
    near = get_close_matches(name, known, n=1)
    near = near or [by_last[last] for last in get_close_matches(name.rpartition(".")[2], by_last, n=1)]
    return f" Did you mean {near[0]!r}?" if near else ""


def validated(kind: Any, values: Any, path: str = "") -> Any:
    """Values as a type wants them; the first that is wrong ends in a `ConfigError`."""
    try:
        return TypeAdapter(kind, config=None if is_dataclass(kind) else CHECKED).validate_python(values)
    except ValidationError as error:
        raise ConfigError(_line(error.errors()[0], path)) from None


def _line(error: Mapping[str, Any], path: str) -> str:
    name = ".".join(filter(None, [path, *(part for part in error["loc"] if isinstance(part, str))]))
    value, kind, reason = error["input"], error["type"], error["msg"].replace("Input should", "it should")
    if kind == "unexpected_keyword_argument":
        return f"There is no setting {name!r}."
    if kind == "value_error":  # of a whole section
        return ".".join(filter(None, [name, str(error["ctx"]["error"])]))
    if kind == "dataclass_type":
        return f"{name}={as_word(value)} replaces a whole section: set entries of it, such as {name}.KEY=VALUE."
    if name == "device":
        reason = "there are auto, cpu, mps, cuda, cuda:0, cuda:1 and so on"
    hint = nearest(str(value), re.findall(r"'(\w+)'", error["ctx"]["expected"])) if kind == "literal_error" else ""
    return f"{name}={as_word(value)} is impossible: {reason}.{hint}"


def check_machine(settings: Settings) -> None:
    """Refuse what is not installed here: the environment, a library, the classes of parts."""
    options = settings.env.options
    if settings.log.tensorboard and not find_spec("tensorboard"):
        raise ConfigError("TensorBoard is not installed: pip install 'dreamer_torchrl[tensorboard]'")
    if settings.collector.kind == "ray" and not find_spec("ray"):
        raise ConfigError("Ray is not installed: pip install 'dreamer_torchrl[ray]'")
    if settings.env.family != "none":
        check_env(settings.env.family, options)
    if settings.eval.arguments:
        check_env(settings.env.family, {**options, "arguments": settings.eval.arguments})
    parts = {"learner": settings.learner_part}
    parts |= {f"agent.{name}": part for name, part in settings.agent.parts.items()}
    behaviour, term = settings.exploration.behaviour, settings.representation.term
    more = {"exploration.behaviour": behaviour, "representation.term": term}
    parts |= {name: part for name, part in more.items() if part is not None}
    parts |= {f"log.loggers.{name}": part for name, part in settings.log.loggers.items()}
    for name, part in parts.items():
        if not part.get("_target_"):
            raise ConfigError(f"{name}._target_ is missing: give module.Class.")


def make_part(part: Mapping[str, Any], *arguments: Any) -> Any:
    """Call what ``_target_`` names with ``arguments``, and with the other entries by name; parts inside come first."""
    target = part["_target_"]
    module_source(target.partition(".")[0])  # finds modules in the current folder
    try:
        return instantiate(dict(part), _partial_=True, _convert_="all")(*arguments)
    except (InstantiationException, TypeError) as error:
        raise ConfigError(f"{target} cannot be made: {str(error).splitlines()[0]}") from error


def make_logger(name: str, part: Mapping[str, Any], run_dir: Path) -> Any:
    """A logger; where it takes ``exp_name`` and ``log_dir`` they are the entry's name and the run's folder."""
    target = part["_target_"]
    module_source(target.partition(".")[0])
    try:
        known = signature(get_object(target).__init__).parameters
    except ImportError as error:
        raise ConfigError(f"{target} cannot be made: {str(error).splitlines()[0]}") from error
    given = {"exp_name": name, "log_dir": str(run_dir)}
    return make_part({key: value for key, value in given.items() if key in known} | dict(part))


def remarks(settings: Settings) -> list[str]:
    found, cores = [], os.cpu_count() or 1
    if not settings.offline and settings.total_steps <= settings.first_update:
        begin = f"updates begin after step {settings.first_update:,} (prefill, or replay.batch times replay.length)"
        found.append(f"Nothing will be learned: {begin}, and total_steps is {settings.total_steps:,}.")
    if (settings.threads or 0) > cores:
        found.append(f"threads={settings.threads}: this machine has {cores} cores, and more threads are slower.")
    return found


def as_word(value: Any) -> str:
    """A value as it is written on a command line: ``null``, ``true``, ``[1, two]``."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_word(item) for item in value)}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def as_plain(value: Any) -> Any:
    """Settings as dictionaries, lists, strings and numbers, which any file format can hold."""
    return to_jsonable_python(value, inf_nan_mode="constants")


def leaves(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        flat |= leaves(value, f"{path}{key}.") if isinstance(value, Mapping) and value else {f"{path}{key}": value}
    return flat
