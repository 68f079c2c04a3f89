"""The words of a command line, read by Hydra's grammar: one setting each, or several values for a sweep."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException

from dreamer_torchrl.config.checks import ConfigError, nearest

LONGEST_NAME = 150
"""Of a run in a sweep: file systems end at 255 bytes."""


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: its words, without ``run_dir``, and what tells it from the others, as a file's name."""

    words: list[str]
    name: str


def parse(words: Sequence[str]) -> list[Override]:
    """Read words as Hydra does."""
    return [_parse(word) for word in words]


def combinations(words: Sequence[str], offered: Mapping[str, Sequence[str]]) -> list[Combination]:
    """Each combination of the values that the words give; the last word changes fastest.

    Args:
        words: such as ``seed=0,1``, ``seed=range(3)``, ``size=choice(nano,size1m)`` or ``env=glob(*cart*)``.
        offered: the names of each group, for ``glob``.

    Example:
        >>> for one in combinations(["seed=0,1", "env=cartpole,pendulum", "device=cpu"], {}):
        ...     print(one.name, one.words)
        env=cartpole,seed=0 ['seed=0', 'env=cartpole', 'device=cpu']
        env=pendulum,seed=0 ['seed=0', 'env=pendulum', 'device=cpu']
        env=cartpole,seed=1 ['seed=1', 'env=cartpole', 'device=cpu']
        env=pendulum,seed=1 ['seed=1', 'env=pendulum', 'device=cpu']
    """
    lists: dict[str, list[str]] = {}
    swept: set[str] = set()
    for override in parse([as_path(word) for word in words]):
        key = override.key_or_group
        if override.is_sweep_override():
            swept.add(key)
            lists[key] = [f"{key}={value}" for value in _values(override, offered)]
        elif key != "run_dir":
            swept.discard(key)  # the last word on a setting counts
            lists[key] = [override.input_line]
    found = [
        Combination(list(chosen), _name([word for key, word in zip(lists, chosen, strict=True) if key in swept]))
        for chosen in product(*lists.values())
    ]
    (twice, count), *_ = Counter(one.name for one in found).most_common(1)
    if count > 1:
        raise ConfigError(f"Two runs of the sweep would be called {twice}: give values that letters and digits tell.")
    return found


def as_path(word: str) -> str:
    """Quote the path of a run, which may hold any character, unless it is quoted or made of other settings."""
    key, _, path = word.partition("=")
    if key.lstrip("+") != "run_dir" or path[:1] in ("'", '"') or path == "null" or "${" in path:
        return word
    if not path:
        return "run_dir=null"
    path = str(Path(path).expanduser()).replace("'", "\\'")
    return f"run_dir='{path}'"


def refuse(override: Override) -> None:
    """Say no to what Hydra can and a run cannot."""
    word, key = override.input_line, override.key_or_group
    if override.is_sweep_override():
        raise ConfigError(f"{word!r} asks for several runs: add --multirun to have them one after another.")
    if key.partition("/")[0].partition(".")[0] == "hydra":
        raise ConfigError(f"{word!r}: Hydra only reads words here, it has no settings; a run's folder is run_dir=...")
    if override.is_delete():
        raise ConfigError(
            f"{word!r} takes something away, but everything here has a value: set it, such as seed=1, "
            "experiment=null or logger=none."
        )
    if override.package is not None:
        raise ConfigError(f"{word!r} names a place for {key}, but there is only one: write {key}=... instead.")


def _parse(word: str) -> Override:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        key, equals, value = word.partition("=")
        if not equals or word.startswith("-"):
            raise ConfigError(f"{word!r} is no setting: write key=value, such as seed=1 or env=pendulum.") from None
        quoted = f"\"{key.strip()}='{value.strip()}'\""
        raise ConfigError(f"{word!r} cannot be read: write key=value, or quote the value: {quoted}.") from None


def _values(override: Override, offered: Mapping[str, Sequence[str]]) -> list[str]:
    """What a sweep's word stands for, each value as it is written, none of them twice."""
    word, key = override.input_line, override.key_or_group
    if override.value_type is ValueType.INTERVAL_SWEEP:
        raise ConfigError(f"{word!r} has no end of values: list them, as in {key}=0.1,0.2 or {key}=range(3).")
    pattern = override.value()
    if isinstance(pattern, Glob):
        if key not in offered:
            raise ConfigError(f"{word!r}: only {', '.join(offered)} have names to choose from; list the values.")
        values = pattern.filter(list(offered[key]))
        hint = nearest(",".join(pattern.include), offered[key])
    else:
        values, hint = [str(value) for value in override.sweep_string_iterator()], ""
    if not values:
        raise ConfigError(f"{word!r} stands for no value at all.{hint}")
    return list(dict.fromkeys(values))


def _name(words: Sequence[str]) -> str:
    """Words as the name of a folder: any order of theirs gives the same one."""
    bare = re.sub(r"[][(){}'\"]", "", ",".join(sorted(words)))
    name = re.sub(r"[^\w.,=+-]+", "-", bare) or "run"
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 9]}-{zlib.crc32(name.encode()):08x}"
