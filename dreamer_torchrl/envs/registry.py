"""Validation of environment names before torch is imported, with the nearest name or the installation command."""

from __future__ import annotations

import ast
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module, metadata
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

FAMILIES = ("gym", "atari", "dmc", "custom")

OWN = {
    "dreamer_torchrl/GridReach-v0": "dreamer_torchrl.envs.tasks:GridReach",
    "dreamer_torchrl/Memory-v0": "dreamer_torchrl.envs.tasks:Memory",
}
"""Test environments that are part of this package: gymnasium ids and where they are."""


class UnknownEnvironment(ValueError):
    """An unknown environment, or missing software; the message names the remedy."""


def check_env(family: str, options: Mapping[str, Any]) -> None:
    """Raise `UnknownEnvironment` unless `make_env` can make this; imports no torch by itself.

    Example:
        >>> check_env("gym", {"id": "Ant"})
        Traceback (most recent call last):
        dreamer_torchrl.envs.registry.UnknownEnvironment: Unknown environment id 'Ant': did you mean 'Ant-v5'?
    """
    check_family(family)
    checks: dict[str, tuple[Callable[[str], Any], str]] = {
        "gym": (check_gym, "id"),
        "atari": (check_atari, "game"),
        "dmc": (check_dmc, "task"),
        "custom": (check_factory, "factory"),
    }
    check, key = checks[family]
    if not options.get(key):
        raise UnknownEnvironment(f"The family {family!r} needs an option {key!r}, which names the environment.")
    check(options[key])
    if family == "gym":
        check_arguments(options[key], options.get("arguments") or {})
    _check_values(options)


def check_family(family: str) -> None:
    """Raise unless there is a family of this name."""
    if family not in FAMILIES:
        raise UnknownEnvironment(f"Unknown family of environments {family!r}{nearest(family, FAMILIES)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """End of a message: the most similar known name, or all of them where they are few.

    Example:
        >>> nearest("Pong", ["ping", "pong"])
        ": did you mean 'pong'?"
    """
    names = sorted(known)
    spelled = {name.rpartition("/")[2].lower(): name for name in names} | {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), list(spelled), n=1)
    if close:
        return f": did you mean {spelled[close[0]]!r}?"
    shown = ", ".join(names[:12])
    return f": there are {shown}{', ...' if len(names) > 12 else '.'}"


def check_gym(id: str) -> None:
    """Check a gymnasium id, which may be of the form ``module:Name-v0``, and that what it needs is installed."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    register(id)
    name = id.rpartition(":")[2]
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error:
        raise UnknownEnvironment(f"Unknown environment id {id!r}{nearest(name, gymnasium.registry)}") from None
    if not isinstance(spec.entry_point, str):
        return
    if "mujoco" in spec.entry_point:
        _need_mujoco(id)
    try:
        load_env_creator(spec.entry_point)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        remedy = f": pip install {error.name}" if isinstance(error, ImportError) and error.name else ""
        raise UnknownEnvironment(f"The environment {id!r} needs something that is missing ({error}){remedy}") from error


def check_arguments(id: str, arguments: Iterable[str]) -> None:
    """Check the names of arguments for a gymnasium environment whose id was checked."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    entry_point = gymnasium.spec(id.rpartition(":")[2]).entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    own, common = signature(creator).parameters, signature(gymnasium.make).parameters
    if any(parameter.kind is Parameter.VAR_KEYWORD for parameter in own.values()):
        return
    for name in arguments:
        if name not in {*own, *common}:
            raise UnknownEnvironment(f"The environment {id!r} takes no argument {name!r}{nearest(name, own)}")


def register(id: str) -> None:
    """Register this package's ids, ALE's, or those of the module before the colon."""
    import gymnasium

    module, _, name = id.rpartition(":")
    if module:
        if module_source(module) is None:
            raise UnknownEnvironment(f"The environment id {id!r} names a module {module!r}, which was not found.")
        import_module(module)
    elif name.startswith("ALE/") and "ALE/Pong-v5" not in gymnasium.registry:
        import ale_py

        gymnasium.register_envs(ale_py)
    for own, entry_point in OWN.items():
        if own not in gymnasium.registry:
            gymnasium.register(own, entry_point)


def check_atari(game: str) -> str:
    """Check a game such as ``ms_pacman``; returns ALE's name."""
    game = {"james_bond": "jamesbond"}.get(game, game)
    games = atari_games()
    if game not in games:
        raise UnknownEnvironment(f"Unknown Atari game {game!r}{nearest(game, games)}")
    return game


def atari_games() -> list[str]:
    """All games of ALE without two-player ones, which end the process when loaded."""
    from ale_py import ALEInterface, roms

    return [game for game in roms.get_all_rom_ids() if ALEInterface.isSupportedROM(roms.get_rom_path(game))]


def check_dmc(task: str) -> tuple[str, str]:
    """Check a task such as ``walker_walk``; returns dm_control's domain and task."""
    _need_mujoco(task, "dm_control")
    known = dmc_tasks()
    if task not in known:
        raise UnknownEnvironment(f"Unknown task {task!r}{nearest(task, known)}")
    return known[task]


def _need_mujoco(env: str, *others: str) -> None:
    missing = [name for name in (*others, "mujoco") if find_spec(name) is None]
    if missing:
        raise UnknownEnvironment(
            f"The environment {env!r} needs {' and '.join(missing)}: pip install 'dreamer_torchrl[dmc]'"
        )
    version = metadata.version("mujoco")
    if others and int(version.partition(".")[0]) >= 4:
        raise UnknownEnvironment(f"dm_control does not work with mujoco {version}: pip install 'mujoco>=3.17,<4'")
    choose_renderer()


def dmc_tasks() -> dict[str, tuple[str, str]]:
    """All tasks of the suite, each with its domain and its name there; needs dm_control."""
    choose_renderer()  # before the import
    try:
        from dm_control import suite
    except (RuntimeError, AttributeError, ImportError) as error:  # raised by unavailable renderers
        raise UnknownEnvironment(
            f"dm_control cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {error} Unset MUJOCO_GL, "
            "or set MUJOCO_GL=egl and install its library (Debian and Ubuntu: apt install libegl1)."
        ) from error
    known = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
    return known | {"cup_catch": known["ball_in_cup_catch"]}  # its official short name


def choose_renderer() -> None:
    """Set up rendering without a screen, unless MUJOCO_GL is set; dm_control reads it once, on import."""
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl" if _loads("libEGL.so.1") or not _loads("libOSMesa.so.8") else "osmesa")


def check_factory(factory: str) -> tuple[str, str]:
    """Check ``package.module:function`` by parsing the file, without running it; returns the two parts."""
    module, colon, function = factory.partition(":")
    if not (module and colon and function):
        raise UnknownEnvironment(f"The factory {factory!r} must be of the form 'package.module:function'.")
    source = module_source(module)
    if source is None:
        raise UnknownEnvironment(
            f"The factory {factory!r} is in a module {module!r}, which was not found: start in the folder that holds "
            f"it (this is {Path.cwd()}), or install it."
        )
    if source.suffix == ".py":
        try:
            bound = set(_bound(ast.parse(source.read_text())))
        except SyntaxError as error:
            raise UnknownEnvironment(f"{source} cannot be read, line {error.lineno}: {error.msg}.") from None
        if function not in bound and "*" not in bound:
            raise UnknownEnvironment(f"{source} has no {function!r}{nearest(function, bound)}")
    return module, function


def module_source(name: str) -> Path | None:
    """Find a module's file, also in the current folder, without importing its packages."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    top, *parts = name.split(".")
    spec = find_spec(top)
    if spec is None:
        return None
    source, folders = Path(spec.origin or "."), [Path(folder) for folder in spec.submodule_search_locations or ()]
    for part in parts:
        packages = [folder / part for folder in folders if (folder / part).is_dir()]
        files = [package / "__init__.py" for package in packages if (package / "__init__.py").is_file()]
        files += [file for folder in folders for file in sorted(folder.glob(f"{part}.*"))]  # .py or a compiled one
        if not (files or packages):
            return None
        source, folders = [*files, *packages][0], packages
    return source


def _check_values(options: Mapping[str, Any]) -> None:
    for key, least in (("size", 1), ("noops", 0), ("frame_skip", 1), ("max_frames", 1)):
        if options.get(key, least) < least:
            raise UnknownEnvironment(f"{key} is {options[key]}: it must be at least {least}.")
    if options.get("actions", "all") not in ("all", "needed"):
        raise UnknownEnvironment(f"actions is {options['actions']!r}: it must be 'all' or 'needed'.")
    if not (options.get("image", False) or options.get("proprio", True)):
        raise UnknownEnvironment("image and proprio are both false: set one of them to true, or nothing is seen.")


def _bound(tree: ast.Module) -> Iterable[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.alias):
            yield node.asname or node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _loads(library: str) -> bool:
    import ctypes

    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
