"""Recorded data from disk as steps: one function for each kind of source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Composite

from dreamer_torchrl.checkpoint.checkpoints import Checkpoints
from dreamer_torchrl.checkpoint.specs import Specs
from dreamer_torchrl.data.offline import TRAJECTORY_KEYS, steps_from_transitions
from dreamer_torchrl.envs.codecs import codec_of, observation_codec
from dreamer_torchrl.keys import STREAM
from dreamer_torchrl.limits import ConfigError
from dreamer_torchrl.modules.spaces import key_name

if TYPE_CHECKING:
    from minari import MinariDataset

MINARI, METADATA = "minari:", "metadata.json"  # a Minari data set by its name, and the file that makes a folder one
CHECKPOINTS, STORED = "checkpoints", "storage"  # folders in that of a run, and of a replay buffer of TorchRL
NOT_SEEN = {"action", "reward", "discount", "is_first", "is_last", "is_terminal"}  # in a file of an episode
KINDS = (
    "the folder of a run, of a TensorDict or a replay buffer that TorchRL wrote, of episodes as .npz files, or of a "
    f"Minari data set, which may also be given as {MINARI}NAME"
)


@dataclass(frozen=True)
class Recorded:
    """Whole trajectories one after the other: the first step of each has ``is_init``, the last is ``done``.

    ``specs`` are those of the source if it has any; ``scaled`` says whether bounded actions are -1 to 1 already.
    """

    steps: TensorDictBase  # [T]
    specs: Specs | None = None
    scaled: bool = False


def read(source: str) -> Recorded:
    """The steps in a folder, or in ``minari:NAME``; `ConfigError` where it holds nothing to learn from."""
    if source.startswith(MINARI):
        return from_minari(source)
    path = Path(source)
    if not path.is_dir():
        raise ConfigError(f"offline={source} is no folder: give {KINDS}.")
    if (path / CHECKPOINTS).is_dir():
        return from_run(path)
    if (path / "meta.json").is_file() or (path / STORED / "meta.json").is_file():
        return from_torchrl(path)
    if (path / METADATA).is_file() or (path / "data" / METADATA).is_file():
        return from_minari(source)
    if any(path.glob("*.npz")):
        return from_episodes(path)
    raise ConfigError(f"offline={source} holds nothing that can be read: give {KINDS}.")


def from_run(path: Path) -> Recorded:
    """All that the replay of a run of ours holds, whatever its streams and sizes; its latents are another agent's."""
    saved = Checkpoints(path / CHECKPOINTS).load()
    if saved is None:
        raise ConfigError(f"offline={path} has no checkpoint yet: let it train for a while.")
    steps, trajectories = saved.all_steps(), []
    stream = steps[STREAM].flatten()
    for number in stream.unique():
        own = steps[stream == number]
        if own["is_init"].any():  # what is left of an episode whose start was overwritten is not used
            trajectories.append(own[int(own["is_init"].flatten().nonzero()[0]) :].clone())
            trajectories[-1]["done"][-1] = True
    if not trajectories:
        raise ConfigError(f"offline={path} holds no first step of an episode: let it train for longer.")
    return Recorded(torch.cat(trajectories).exclude(STREAM), Specs.from_tree(saved.parts["specs"]), scaled=True)


def from_torchrl(path: Path) -> Recorded:
    """Transitions in the root/``next`` layout, as `TensorDict.memmap` and TorchRL's data sets and buffers write them.

    What a replay buffer holds is put in the order of time. Where there are numbers of trajectories, the parts of each
    are put together, as they are apart in what several environments wrote into one buffer.
    """
    buffer = (path / STORED / "meta.json").is_file()
    try:
        transitions = TensorDict.load_memmap(path / STORED if buffer else path)
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"offline={path} is damaged ({type(error).__name__}: {error}): put it back.") from error
    if buffer:
        stored = json.loads((path / STORED / "storage_metadata.json").read_text())["len"]
        cursor = json.loads((path / "writer" / "metadata.json").read_text())["cursor"]
        full = stored == transitions.numel()
        times = stored * len(transitions) // transitions.numel()
        transitions = transitions[(torch.arange(times) + (cursor if full else 0)) % times]
        if transitions.ndim > 1:
            transitions = transitions.flatten(1, -1).transpose(0, 1)  # time, which is first in a buffer, is last
    if "next" not in transitions.keys():  # noqa: SIM118
        there = ", ".join(sorted(map(str, transitions.keys())))
        raise ConfigError(f"offline={path} has no 'next', but {there}: write transitions in TorchRL's layout.")
    actions = [key for key in transitions.keys(True, True) if key == "action" or key[0] == "action"]
    trajectory = next((key for key in TRAJECTORY_KEYS if key in transitions.keys(True)), None)
    if transitions.ndim == 1 and trajectory is not None:
        transitions = transitions[transitions[trajectory].reshape(len(transitions)).argsort(stable=True)]
    try:
        return Recorded(steps_from_transitions(transitions, actions=actions).exclude(STREAM))
    except (KeyError, ValueError) as error:
        raise ConfigError(f"offline={path}: {error.args[0]}") from error


def from_minari(source: str) -> Recorded:
    """A data set of Minari by its name (``minari:NAME``, downloaded if it is not here) or its folder."""
    try:
        import minari
    except ImportError as error:
        raise ConfigError(f"offline={source} needs minari: pip install 'dreamer_torchrl[minari]'") from error
    name = source.removeprefix(MINARI)
    try:
        if name != source:
            data = minari.load_dataset(name, download=True)  # where it is not here yet
        else:
            data = minari.MinariDataset(Path(source) if (Path(source) / METADATA).is_file() else Path(source) / "data")
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ConfigError(f"offline={source} cannot be read ({type(error).__name__}: {error}).") from error
    return _from_minari(data, source)


def _from_minari(data: MinariDataset, source: str) -> Recorded:
    seen, single = observation_codec(data.observation_space)
    act = codec_of(data.action_space, "action")
    episodes = []
    for one in data.iterate_episodes():
        times, observations = range(len(one.rewards)), {single: one.observations} if single else one.observations
        steps = torch.stack([seen.to_tensor(_at(observations, t)) for t in (*times, len(times))])  # [n + 1]
        actions = torch.stack([TensorDict({"action": act.to_tensor(_at(one.actions, t))}) for t in times])  # [n]
        episodes.append(_episode(steps, actions, torch.as_tensor(one.rewards), bool(one.terminations[-1])))
    if not episodes:
        raise ConfigError(f"offline={source} has no episodes.")
    return Recorded(torch.cat(episodes), Specs(seen.spec, Composite(action=act.spec), {}))


def _at(values: Any, time: int) -> Any:
    """One step of arrays in dictionaries and tuples."""
    if isinstance(values, Mapping):
        return {key: _at(value, time) for key, value in values.items()}
    return tuple(_at(value, time) for value in values) if isinstance(values, tuple) else values[time]


def from_episodes(path: Path) -> Recorded:
    """A folder with one ``.npz`` file for each episode, in the layout of the official Dreamer V1 and V2.

    All arrays of a file have one length, that of the observations. The first reward and action are of no meaning:
    ``reward`` and ``action`` are what led to the observation beside them. A last step with ``is_terminal``, or where
    ``discount`` is 0, ended the task; any other was cut off. Actions that were bounded are -1 to 1, classes one-hot.
    """
    episodes: list[TensorDictBase] = []
    for file in sorted(path.glob("*.npz")):
        steps = _from_episode(file)
        if episodes and (found := _layout(steps)) != (first := _layout(episodes[0])):
            key = min(key for key in found.keys() | first.keys() if found.get(key) != first.get(key))
            told = f"{file} has {key}: {found.get(key, 'nothing')}, the files before it {first.get(key, 'nothing')}"
            raise ConfigError(f"{told}: give episodes of one environment.")
        episodes.append(steps)
    return Recorded(torch.cat(episodes), scaled=True)


def _from_episode(file: Path) -> TensorDictBase:
    try:
        with np.load(file) as opened:
            arrays = {key: opened[key] for key in opened.files}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise ConfigError(f"{file} cannot be read ({error}): it must be an .npz file of numbers.") from error
    if missing := {"action", "reward"} - arrays.keys():
        raise ConfigError(f"{file} has no {' and no '.join(sorted(missing))}, but {', '.join(arrays) or 'nothing'}.")
    lengths = {key: len(array) if array.ndim else 0 for key, array in arrays.items()}
    if len(set(lengths.values())) > 1 or lengths["action"] < 2:
        told = ", ".join(f"{key} {length}" for key, length in lengths.items())
        raise ConfigError(f"{file} has arrays of the lengths {told}: they must be the same, and 2 at least.")
    if starts := int(arrays.get("is_first", np.zeros(1))[1:].sum()):
        raise ConfigError(f"{file} holds {starts + 1} episodes: write one file for each.")
    at_end = arrays["is_terminal"][-1] if "is_terminal" in arrays else arrays.get("discount", np.ones(1))[-1] == 0
    seen = {key: _tensor(array) for key, array in arrays.items() if key not in NOT_SEEN and not key.startswith("log_")}
    action = TensorDict({"action": _tensor(arrays["action"][1:])}, [lengths["action"] - 1])
    return _episode(TensorDict(seen, [lengths["action"]]), action, _tensor(arrays["reward"][1:]), bool(at_end))


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)


def _layout(steps: TensorDictBase) -> dict[str, str]:
    return {key_name(key): f"{value.dtype} {list(value.shape[1:])}" for key, value in steps.items(True, True)}


def _episode(seen: TensorDictBase, actions: TensorDictBase, rewards: Tensor, terminated: bool) -> TensorDictBase:
    """Steps ``[n + 1]`` of what was seen ``[n + 1]``, and of actions and their rewards ``[n]``."""
    steps = seen.update(torch.cat([actions, actions[-1:]]))
    steps["reward"] = torch.cat([torch.zeros(1), rewards.reshape(-1).float()]).unsqueeze(1)
    for key, place, flag in (("is_init", 0, True), ("terminated", -1, terminated), ("done", -1, True)):
        steps[key] = torch.zeros(len(steps), 1, dtype=torch.bool)
        steps[key][place] = flag
    return steps
