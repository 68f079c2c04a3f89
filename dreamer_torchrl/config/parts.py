"""Parts by ``_target_``, as `hydra.utils.instantiate` has them: classes and functions that are not of this package."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

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


def check_targets(value: Any, path: str) -> None:
    """Raise `ConfigError` unless each ``_target_`` in a value can be found; imports nothing."""
    for name, target in _targets(value, path):
        if not target:
            raise ConfigError(f"{name}._target_ is missing: give module.Class.")
        module, _, function = str(target).rpartition(".")
        try:
            check_factory(f"{module}:{function}")
        except UnknownEnvironment as error:
            text = (
                str(error)
                .replace(f"{module}:{function}", str(target))
                .replace("package.module:function", "module.Class")
            )
            raise ConfigError(text.replace("The factory", f"{name}._target_")) from None


def _targets(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield path, value["_target_"]
        for key, inner in value.items():
            yield from _targets(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _targets(inner, path)
