"""Validation of environment names before torch is imported, with the nearest name or the installation command."""

from __future__ import annotations

import difflib
import os
import symtable
import sys
from collections.abc import Iterable, Mapping
from ctypes.util import find_library
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from dreamer_torchrl.limits import ConfigError

FAMILIES = {"gym": "id", "atari": "game", "dmc": "task", "custom": "factory"}  # and the option that names one
OWN = {
    "dreamer_torchrl/GridReach-v0": ("dreamer_torchrl.envs.tasks:GridReach", None),
    "dreamer_torchrl/Maze-v0": ("dreamer_torchrl.envs.tasks:Maze", None),
    "dreamer_torchrl/Memory-v0": ("dreamer_torchrl.envs.tasks:Memory", None),
    "dreamer_torchrl/CarRacing-v0": ("dreamer_torchrl.envs.car_racing:CarRacing", 250),
    "dreamer_torchrl/Crafter-v0": ("dreamer_torchrl.envs.crafter:Crafter", None),
    "dreamer_torchrl/MiniGrid-v0": ("dreamer_torchrl.envs.minigrid:task", None),
}
"""Environments of the package by id: the class, and the steps after which an episode is cut off."""

LEAST = {"size": 1, "noops": 0, "frame_skip": 1, "max_frames": 1}


class UnknownEnvironment(ConfigError):
    """An unknown environment, or missing software; the message names the remedy."""


def check_env(family: str, options: Mapping[str, Any]) -> None:
    """Raise `UnknownEnvironment` unless `make_env` can make this; imports no torch by itself."""
    if family not in FAMILIES:
        raise UnknownEnvironment(f"Unknown family of environments {family!r}{nearest(family, FAMILIES)}")
    if not (name := options.get(FAMILIES[family])):
        raise UnknownEnvironment(f"The family {family!r} needs an option {FAMILIES[family]!r}, the environment's name.")
    if family == "gym":
        check_gym(name, options.get("arguments") or {})
    else:
        {"atari": check_atari, "dmc": check_dmc, "custom": check_factory}[family](name)
    for key, least in LEAST.items():
        if options.get(key, least) < least:
            raise UnknownEnvironment(f"{key} is {options[key]}: it must be at least {least}.")
    if options.get("actions", "all") not in ("all", "needed"):
        raise UnknownEnvironment(f"actions is {options['actions']!r}: it must be 'all' or 'needed'.")
    if not (options.get("image", False) or options.get("proprio", True)):
        raise UnknownEnvironment("image and proprio are both false: set one of them to true, or nothing is seen.")


def nearest(word: str, known: Iterable[str]) -> str:
    """End of a message: the most similar known name, or all of them where they are few."""
    names = sorted(known)
    spelled = {name.rpartition("/")[2].lower(): name for name in names} | {name.lower(): name for name in names}
    if close := difflib.get_close_matches(word.lower(), list(spelled), n=1):
        return f": did you mean {spelled[close[0]]!r}?"
    return f": there are {', '.join(names[:12])}{', ...' if len(names) > 12 else '.'}"


def check_gym(id: str, arguments: Iterable[str] = ()) -> Any:
    """Check a gymnasium id, perhaps ``module:Name-v0``, what it needs, and names of arguments; returns its creator."""
    import gymnasium
    from gymnasium.envs.registration import load_env_creator

    module, _, name = id.rpartition(":")
    if module and module_source(module) is None:
        raise UnknownEnvironment(f"The environment id {id!r} names a module {module!r}, which was not found.")
    if module:
        import_module(module)
    elif name.startswith("ALE/"):
        import_module("ale_py")  # registers its games
    for own in OWN.keys() - gymnasium.registry.keys():
        gymnasium.register(own, OWN[own][0], max_episode_steps=OWN[own][1])
    try:
        creator = gymnasium.spec(name).entry_point
    except gymnasium.error.Error:
        raise UnknownEnvironment(f"Unknown environment id {id!r}{nearest(name, gymnasium.registry)}") from None
    if isinstance(creator, str):
        if "mujoco" in creator:
            _need_mujoco(id)
        try:
            creator = load_env_creator(creator)
        except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
            remedy = f": pip install {error.name}" if isinstance(error, ImportError) and error.name else ""
            raise UnknownEnvironment(f"The environment {id!r} needs {error}{remedy}") from error
    own, common = signature(creator).parameters, signature(gymnasium.make).parameters
    if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in own.values()):
        for name in arguments:
            if name not in {*own, *common}:
                raise UnknownEnvironment(f"The environment {id!r} takes no argument {name!r}{nearest(name, own)}")
    return creator


def check_atari(game: str) -> str:
    """Check a game such as ``ms_pacman``; returns ALE's name."""
    game = {"james_bond": "jamesbond"}.get(game, game)
    if game not in (games := atari_games()):
        raise UnknownEnvironment(f"Unknown Atari game {game!r}{nearest(game, games)}")
    return game


@cache  # it reads the files of all games
def atari_games() -> tuple[str, ...]:
    """All games of ALE without two-player ones, which end the process when loaded."""
    from ale_py import ALEInterface, roms

    return tuple(game for game in roms.get_all_rom_ids() if ALEInterface.isSupportedROM(roms.get_rom_path(game)))


def check_dmc(task: str) -> tuple[str, str]:
    """Check a task such as ``walker_walk``; returns dm_control's domain and task."""
    _need_mujoco(task, "dm_control")
    try:
        from dm_control import suite
    except (RuntimeError, AttributeError, ImportError) as error:  # raised by unavailable renderers
        raise UnknownEnvironment(
            f"dm_control cannot be imported with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {error} Unset MUJOCO_GL, "
            "or set MUJOCO_GL=egl and install its library (Debian and Ubuntu: apt install libegl1)."
        ) from error
    known = {f"{domain}_{name}": (domain, name) for domain, name in suite.ALL_TASKS}
    known["cup_catch"] = known["ball_in_cup_catch"]  # its official short name
    if task not in known:
        raise UnknownEnvironment(f"Unknown task {task!r}{nearest(task, known)}")
    return known[task]


def _need_mujoco(env: str, *others: str) -> None:
    """Check what is installed, and set up rendering without a screen unless MUJOCO_GL is set: it is read on import."""
    if missing := " and ".join(name for name in (*others, "mujoco") if find_spec(name) is None):
        raise UnknownEnvironment(f"The environment {env!r} needs {missing}: pip install 'dreamer_torchrl[dmc]'")
    version = metadata.version("mujoco")
    if others and int(version.partition(".")[0]) >= 4:
        raise UnknownEnvironment(f"dm_control does not work with mujoco {version}: pip install 'mujoco>=3.17,<4'")
    if sys.platform == "linux":
        os.environ.setdefault("MUJOCO_GL", "egl" if find_library("EGL") or not find_library("OSMesa") else "osmesa")


def check_factory(factory: str) -> tuple[str, str]:
    """Check ``package.module:function`` by the names in the file, without running it; returns the two parts."""
    module, colon, function = factory.partition(":")
    if not (module and colon and function):
        raise UnknownEnvironment(f"The factory {factory!r} must be of the form 'package.module:function'.")
    if (source := module_source(module)) is None:
        told = f"The factory {factory!r} is in a module {module!r}, which was not found: start in the folder that holds"
        raise UnknownEnvironment(f"{told} it (this is {Path.cwd()}), or install it.")
    if source.suffix == ".py":
        text = source.read_text()
        try:
            names = symtable.symtable(text, str(source), "exec").get_symbols()
        except SyntaxError as error:
            raise UnknownEnvironment(f"{source} cannot be read, line {error.lineno}: {error.msg}.") from None
        bound = {name.get_name() for name in names if name.is_assigned() or name.is_imported()}
        if function not in bound and "import *" not in text:
            raise UnknownEnvironment(f"{source} has no {function!r}{nearest(function, bound)}")
    return module, function


def module_source(name: str) -> Path | None:
    """A module's file, also in the current folder; only the packages that hold it are imported."""
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        spec = find_spec(name)
    except ModuleNotFoundError as error:
        if error.name and (name + ".").startswith(error.name + "."):
            return None
        raise UnknownEnvironment(f"The packages of {name!r} cannot be imported: {error}.") from error
    return spec and Path(spec.origin or ".")
