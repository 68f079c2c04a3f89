"""Parts by ``_target_``, as `hydra.utils.instantiate` has them: classes and functions that are not of this package."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.envs.registry import UnknownEnvironment, check_factory, module_source


def make_part(part: Mapping[str, Any], *arguments: Any) -> Any:
    """Call what ``_target_`` names with ``arguments``, and with the other entries by name; parts inside come first.

    Example:
        >>> make_part({"_target_": "fractions.Fraction", "denominator": 4}, 3)
        Fraction(3, 4)
    """
    target = part["_target_"]
    module_source(target.partition(".")[0])  # finds modules in the current folder
    try:
        return instantiate(dict(part), _partial_=True, _convert_="all")(*arguments)
    except (InstantiationException, TypeError) as error:
        raise ConfigError(f"{target} cannot be made: {str(error).splitlines()[0]}") from error


def make_logger(name: str, entry: Mapping[str, Any], run_dir: Path) -> Any:
    """A logger; where it takes ``exp_name`` and ``log_dir`` they are the entry's name and the run's folder."""
    module_source(entry["_target_"].partition(".")[0])
    known = signature(get_object(entry["_target_"]).__init__).parameters
    given = {"exp_name": name, "log_dir": str(run_dir)}
    return make_part({key: value for key, value in given.items() if key in known} | dict(entry))


def check_targets(value: Any, path: str) -> None:
    """Raise `ConfigError` unless each ``_target_`` in a value can be found; imports nothing."""
    if isinstance(value, list | tuple):
        for inner in value:
            check_targets(inner, path)
    if not isinstance(value, Mapping):
        return
    for key, inner in value.items():
        check_targets(inner, f"{path}.{key}")
    if not value.get("_target_", True):
        raise ConfigError(f"{path}._target_ is missing: give module.Class.")
    if "_target_" in value:
        target = str(value["_target_"])
        module, _, name = target.rpartition(".")
        try:
            check_factory(f"{module}:{name}")
        except UnknownEnvironment as error:
            text = str(error).replace(f"The factory {f'{module}:{name}'!r}", f"{path}._target_ {target!r}")
            raise ConfigError(text.replace("package.module:function", "module.Class")) from None
