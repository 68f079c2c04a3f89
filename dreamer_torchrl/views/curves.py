"""The numbers of runs as curves: one run's series, and the median over the seeds of an experiment.

Only reads ``metrics.jsonl``, while it is being written, too. What others have reached is in `references`.

    run = read_run(folder, config.read_saved(folder))
    evaluations = run.curve("eval/return", "hours")
    band = over_seeds([run.curve("eval/return") for run in group(runs)[0].runs])
"""

from __future__ import annotations

import json
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dreamer_torchrl.agents.size import Size
from dreamer_torchrl.config.checks import as_word, leaves

Axis = Literal["steps", "frames", "hours"]

RETURN, EVALUATION = "episode/return", "eval/return"
"""Of an episode of training, and the mean of the episodes of an evaluation."""

LOSSES = ("dynamics", "representation", "reconstruction", "reward", "continue", "actor", "value", "replay_value")
"""In the order of the paper; each is logged as ``train/loss_<name>``."""

SAME_EXPERIMENT = (
    *("seed", "run_dir", "total_steps", "wandb", "log", "checkpoint", "env.step_timeout"),
    *("eval.every", "eval.episodes", "eval.num_envs", "eval.stop_at", "eval.video", "eval.dream"),
)
"""What may differ between runs whose curves go into one median: it changes neither what is learned nor how fast."""

NUMBER = (int, float)

MOST_POINTS = 400
"""Of one line: about as many as a picture has pixels for it."""


@dataclass(frozen=True)
class Curve:
    """Values ``y`` at the places ``x``, which never go back; both ``[points]``."""

    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Band:
    """Several runs at the same places: median, lower and upper quartile, and how many runs have come so far.

    All ``[points]``.
    """

    x: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    runs: np.ndarray


@dataclass
class _Column:
    """One metric: numbers of the lines that have it, and its values there."""

    lines: array = field(default_factory=lambda: array("q"))
    values: array = field(default_factory=lambda: array("d"))


class Run:
    """What one run has measured; `read_run` makes it.

    Args:
        folder: of the run.
        values: its configuration.
    """

    def __init__(self, folder: Path, values: Mapping[str, Any]):
        self.folder, self.values = folder, values
        self.damaged = 0  # lines that could not be read, a last one without an end not counted
        self._steps = array("q")
        self._columns: dict[str, _Column] = {}

    @property
    def metrics(self) -> list[str]:
        """Names of all that was measured at least once."""
        return sorted(name for name, column in self._columns.items() if column.lines)

    @property
    def environment(self) -> str:
        """See `environment_of`."""
        return environment_of(self.values)

    @property
    def seed(self) -> int:
        """Of the whole run."""
        return int(self.values.get("seed", 0))

    @property
    def frames_per_step(self) -> int:
        """Frames of the environment that one decision lasts."""
        env = self.values["env"]
        return int(env.get("action_repeat", 1)) * int(env.get("frames_per_action", 1))

    def curve(self, metric: str, axis: Axis = "steps") -> Curve:
        """A metric over steps, frames or hours of training; empty if it was never measured. Only finite values."""
        column = self._columns.get(metric, _Column())
        lines, y = np.asarray(column.lines), np.asarray(column.values)  # [points]
        finite = np.isfinite(y)
        return Curve(self._places(axis)[lines[finite]], y[finite])

    def last(self, metric: str) -> float | None:
        """The newest value of a metric; none if it was never measured."""
        values = self.curve(metric).y
        return float(values[-1]) if len(values) else None

    def end(self, axis: Axis = "steps") -> float:
        """How far the run is."""
        return float(self._places(axis)[-1]) if self._steps else 0.0

    def _places(self, axis: Axis) -> np.ndarray:
        """Where each line is, ``[lines]``; hours, which not every line has, go evenly between those that do."""
        steps = np.asarray(self._steps, dtype=float)
        if axis == "steps":
            return steps
        if axis == "frames":
            return steps * self.frames_per_step
        elapsed = self._columns.get("time/elapsed", _Column())
        known = np.concatenate([[0.0], steps[np.asarray(elapsed.lines, dtype=int)]])
        return np.interp(steps, known, np.concatenate([[0.0], elapsed.values])) / 3600

    def _add(self, record: Mapping[str, Any]) -> None:
        """Take a line. One that goes back in time replaces what was written after it: the run was resumed there."""
        step = int(record["step"])
        if self._steps and step < self._steps[-1]:
            self._forget_after(step)
        line = len(self._steps)
        self._steps.append(step)
        for name, value in record.items():
            if name != "step" and (value is None or isinstance(value, NUMBER)):
                column = self._columns.get(name)
                if column is None:
                    column = self._columns[name] = _Column()
                column.lines.append(line)
                column.values.append(np.nan if value is None else value)

    def _forget_after(self, step: int) -> None:
        kept = bisect_right(self._steps, step)
        del self._steps[kept:]
        for column in self._columns.values():
            end = bisect_left(column.lines, kept)
            del column.lines[end:], column.values[end:]


@dataclass(frozen=True)
class Experiment:
    """Runs that differ by their seeds only.

    Args:
        difference: settings that tell it from the other experiments of its environment that were grouped with it.
        runs: at least one.
    """

    difference: str
    runs: tuple[Run, ...]

    @property
    def environment(self) -> str:
        """See `environment_of`."""
        return self.runs[0].environment

    @property
    def name(self) -> str:
        """The environment and what is special."""
        return f"{self.environment} {self.difference}".strip()

    @property
    def count(self) -> str:
        """How many runs, in words: ``3 seeds``."""
        number = len(self.runs)
        noun = "seed" if len({run.seed for run in self.runs}) == number else "run"
        return f"{number} {noun}{'s' if number > 1 else ''}"

    def band(self, metric: str, axis: Axis = "steps", smoothing: int = 1) -> Band:
        """The median over its runs of a metric; runs that never measured it are left out."""
        curves = [run.curve(metric, axis) for run in self.runs]
        return over_seeds([smooth(curve, smoothing) for curve in curves if len(curve)])


# Reading ------------------------------------------------------------------------------------------------------------


def read_run(folder: Path, values: Mapping[str, Any]) -> Run:
    """Read all that a run has measured so far; ``values`` is its configuration, from `config.read_saved`."""
    run = Run(folder, values)
    file = folder / "metrics.jsonl"
    if file.is_file():
        with file.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if not line.endswith("\n"):  # being written right now
                    break
                try:
                    run._add(json.loads(line))
                except (ValueError, TypeError, KeyError):
                    run.damaged += 1
    return run


def environment_of(values: Mapping[str, Any]) -> str:
    """By what name an environment is known, with its kind where one name has several.

    Example:
        >>> environment_of({"env": {"family": "gym", "id": "CartPole-v1"}})
        'CartPole-v1'
        >>> environment_of({"env": {"family": "dmc", "task": "walker_walk", "image": True, "proprio": False}})
        'dmc_vision:walker_walk'
    """
    env = values["env"]
    if env["family"] == "atari":
        return f"{'atari' if env.get('sticky', True) else 'atari100k'}:{env['game']}"
    if env["family"] == "dmc":
        kinds = {(True, False): "dmc_vision", (False, True): "dmc_proprio"}
        return f"{kinds.get((env.get('image'), env.get('proprio')), 'dmc')}:{env['task']}"
    return str(env.get("id") or env.get("factory")).removeprefix("dreamer_torchrl/")


def group(runs: Iterable[Run]) -> list[Experiment]:
    """Gather runs that are the same but for their seeds, in the order in which they come.

    What tells experiments of one environment apart are the settings in which they differ.
    """
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted((key, str(value)) for key, value in _essence(run).items())), []).append(run)
    essences = [_essence(members[0]) for members in groups.values()]
    experiments = []
    for essence, members in zip(essences, groups.values(), strict=True):
        environment = members[0].environment
        peers = [_essence(other[0]) for other in groups.values() if other[0].environment == environment]
        different = {
            key: f"{value:g}" if isinstance(value, float) else as_word(value)
            for key, value in essence.items()
            if any(key not in peer or peer[key] != value for peer in peers)
        }
        words = [f"{key.rpartition('.')[2]}={value}" for key, value in different.items()]
        shown = ", ".join(words[:3]) + (" …" if len(words) > 3 else "")
        experiments.append(Experiment(shown, tuple(members)))
    return experiments


def _essence(run: Run) -> dict[str, Any]:
    """All settings that make it the experiment that it is; a size by its name."""
    values = dict(run.values)
    values["size"] = _size_name(values.get("size"))
    return {
        key: value
        for key, value in leaves(values).items()
        if value is not None
        and value != {}  # as it is where a setting was not there yet
        and not any(key == name or key.startswith(name + ".") for name in SAME_EXPERIMENT)
    }


def _size_name(numbers: Any) -> Any:
    folder = resources.files("dreamer_torchrl.configs").joinpath("size")
    names = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    return next((name for name in names if vars(Size.named(name)) == numbers), numbers)


# Curves -------------------------------------------------------------------------------------------------------------


def smooth(curve: Curve, points: int) -> Curve:
    """Each value as the mean of about ``points`` around it, of fewer at the ends.

    Example:
        >>> smooth(Curve(np.arange(4.0), np.array([0.0, 3.0, 6.0, 9.0])), 3).y.tolist()
        [1.5, 3.0, 6.0, 7.5]
    """
    half = points // 2
    if half < 1 or len(curve) < 2:
        return curve
    sums = np.concatenate([[0.0], np.cumsum(curve.y)])
    here = np.arange(len(curve))
    start, end = np.maximum(here - half, 0), np.minimum(here + half + 1, len(curve))
    return Curve(curve.x, (sums[end] - sums[start]) / (end - start))


def thin(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most so many points, each the mean of those that it stands for; never two at the same place."""
    if not len(curve):
        return curve
    places, where = np.unique(curve.x, return_inverse=True)
    if len(places) > most:
        cells = ((curve.x - places[0]) / (places[-1] - places[0]) * most).astype(int).clip(max=most - 1)
        where = np.unique(cells, return_inverse=True)[1]
    counts = np.bincount(where)
    return Curve(np.bincount(where, curve.x) / counts, np.bincount(where, curve.y) / counts)


def over_seeds(curves: Sequence[Curve], most: int = MOST_POINTS) -> Band:
    """Median and quartiles over runs, where they were measured, or at evenly spaced places if these are many.

    A run counts from its first point to its last: between two it is a straight line, beyond them it is not there.
    """
    curves = [thin(curve, most) for curve in curves if len(curve)]
    if not curves:
        return Band(*np.empty((5, 0)))
    x = np.unique(np.concatenate([curve.x for curve in curves]))  # [points]
    if len(x) > most:
        x = np.linspace(x[0], x[-1], most)
    values = np.stack([np.interp(x, curve.x, curve.y, np.nan, np.nan) for curve in curves])  # [runs, points]
    runs = np.isfinite(values).sum(0)
    x, values, runs = x[runs > 0], values[:, runs > 0], runs[runs > 0]  # a pause between two runs has none
    low, median, high = np.nanpercentile(values, (25, 50, 75), axis=0)
    return Band(x, median, low, high, runs)
