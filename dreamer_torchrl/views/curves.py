"""The numbers of runs as curves: ``metrics.jsonl`` and tables of other systems, experiments, medians over seeds."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from dreamer_torchrl.config.checks import ConfigError, as_word, leaves
from dreamer_torchrl.config.compose import size_name

Axis = Literal["steps", "frames", "hours"]
RETURN, EVALUATION = "episode/return", "eval/return"  # of a training episode; the mean over those of an evaluation

# Settings that may differ between the seeds of one experiment: they change neither what is learned nor how fast.
SAME_EXPERIMENT = (
    *("seed", "run_dir", "total_steps", "wandb", "log", "checkpoint", "env.step_timeout"),
    *("eval.every", "eval.episodes", "eval.num_envs", "eval.stop_at", "eval.video", "eval.dream", "eval.keep_videos"),
)
MOST_POINTS = 400  # of one line: about as many as a chart has pixels for it

# Columns of CSV files of other systems, such as Stable-Baselines3 and CleanRL, the likeliest first.
STEPS = ("step", "steps", "global_step", "timesteps", "total_timesteps", "time/total_timesteps", "env_steps")
FRAMES = ("frames", "frame", "env_frames")
LENGTHS = ("l",)  # of episodes, in a Monitor file of Stable-Baselines3: the step is their sum
RETURNS = (
    *("return", RETURN, EVALUATION, "episode_return", "episodic_return", "charts/episodic_return", "mean_return"),
    *("rollout/ep_rew_mean", "eval/mean_reward", "ep_rew_mean", "mean_reward", "score", "value", "r"),
)
SECONDS = ("time/elapsed", "time/time_elapsed", "seconds", "t")
SEEDS = ("seed", "run")


class Curve(NamedTuple):
    x: np.ndarray  # [points], places that do not decrease
    y: np.ndarray  # [points]


class Band(NamedTuple):
    x: np.ndarray  # [points], as all of these
    median: np.ndarray
    low: np.ndarray  # quartiles
    high: np.ndarray
    runs: np.ndarray  # how many have values there

    def until(self, end: float) -> Band:
        """The part up to ``end``, where the last point is interpolated."""
        if not len(self.x) or end >= self.x[-1]:
            return self
        x = np.append(self.x[self.x < end], end)[: None if end >= self.x[0] else 0]
        return Band(*(np.interp(x, self.x, y) for y in self))


@dataclass
class Run:
    path: Path  # folder of the run, or the CSV file
    values: Mapping[str, Any]  # its configuration; for a CSV file only the seed
    records: list[dict[str, Any]] = field(default_factory=list)  # one for each line, ordered by ``step``
    frames_per_step: int = 1  # action repeat
    damaged: int = 0  # lines that could not be read; an unfinished last line does not count

    @cached_property
    def _columns(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        points: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for line, record in enumerate(self.records):
            for name, value in record.items():
                if isinstance(value, int | float) and math.isfinite(value):
                    points[name].append((line, value))
        columns = {name: np.array(pairs, float).T for name, pairs in points.items()}
        return {name: (lines.astype(int), values) for name, (lines, values) in columns.items()}

    @property
    def metrics(self) -> list[str]:
        return [name for name in self._columns if name != "step"]

    @property
    def environment(self) -> str:
        env = self.values.get("env", {})
        name = next((env[key] for key in ("id", "task", "game", "factory") if env.get(key)), "recorded data")
        return str(name).removeprefix("dreamer_torchrl/")

    def curve(self, metric: str, axis: Axis = "steps") -> Curve:
        """The finite values of a metric over steps, frames or hours of training; empty if it was never measured."""
        lines, values = self._columns.get(metric, (np.empty(0, int), np.empty(0)))
        return Curve(self._places(axis)[lines], values)

    def last(self, metric: str) -> float | None:
        values = self.curve(metric).y
        return float(values[-1]) if len(values) else None

    def end(self, axis: Axis = "steps") -> float:
        return float(self._places(axis)[-1]) if self.records else 0.0

    def _places(self, axis: Axis) -> np.ndarray:
        """Where each line is, ``[lines]``; hours, which not every line has, are interpolated by the steps."""
        steps = np.array([record["step"] for record in self.records], float)
        if axis == "steps":
            return steps
        if axis == "frames":
            return steps * self.frames_per_step
        lines, elapsed = self._columns.get("time/elapsed", (np.empty(0, int), np.empty(0)))
        return np.interp(steps, np.append(0.0, steps[lines]), np.append(0.0, elapsed)) / 3600


@dataclass(frozen=True)
class Experiment:
    difference: str  # settings that tell it from other experiments in its environment; the label of a baseline
    runs: tuple[Run, ...]  # which differ in their seeds only
    baseline: bool = False  # from a CSV file

    @property
    def environment(self) -> str:
        return self.runs[0].environment

    @property
    def count(self) -> str:
        number = len(self.runs)
        noun = "seed" if self.baseline or len({run.values.get("seed") for run in self.runs}) == number else "run"
        return f"{number} {noun}{'s' if number > 1 else ''}"

    def curves(self, metric: str, axis: Axis = "steps") -> list[Curve]:
        return [curve for run in self.runs if (curve := run.curve(metric, axis)).x.size]

    def band(self, metric: str, axis: Axis = "steps", smoothing: int = 1) -> Band:
        """Median and quartiles over its runs; a baseline's file may bring a band of its own (``low``, ``high``)."""
        band = over_seeds([smooth(curve, smoothing) for curve in self.curves(metric, axis)])
        low, high = (self.runs[0].curve(name, axis) for name in ("low", "high"))
        if len(self.runs) > 1 or not (low.x.size and high.x.size):
            return band
        return band._replace(low=np.interp(band.x, *low), high=np.interp(band.x, *high))


def read_run(folder: Path, values: Mapping[str, Any]) -> Run:
    env = values.get("env", {})
    run = Run(folder, values, [], int(env.get("action_repeat", 1)) * int(env.get("frames_per_action", 1)))
    file = folder / "metrics.jsonl"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    for line in text.split("\n")[:-1]:  # after the last newline there is nothing, or what is being written right now
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, TypeError, KeyError):
            run.damaged += 1
            continue
        while run.records and run.records[-1]["step"] > step:  # the run was resumed from an earlier step
            run.records.pop()
        run.records.append(record)
    return run


def read_baselines(
    paths: Sequence[Path], labels: Sequence[str], runs: Sequence[Run], axis: Axis = "steps"
) -> list[Experiment]:
    """One experiment for each CSV file, or for each label, as the files' names are where there are no labels."""
    if len(labels) not in (0, 1, len(paths)):
        raise ConfigError(f"There are {len(labels)} labels for {len(paths)} CSV files: give --label once, or for each.")
    repeats = {run.frames_per_step for run in runs}
    if paths and len(repeats) > 1:
        raise ConfigError("A CSV file can only stand beside runs that all repeat their actions equally often.")
    names = list(labels) * (len(paths) if len(labels) == 1 else 1) or [path.stem for path in paths]
    systems: dict[str, list[Run]] = defaultdict(list)
    for path, name in zip(paths, names, strict=True):
        for run in read_csv(path, *repeats):
            if axis == "hours" and "time/elapsed" not in run.metrics:
                raise ConfigError(f"{path} has no column of seconds ({', '.join(SECONDS)}): use --x steps.")
            if run.records[0]["step"] >= (end := max(own.end() for own in runs)):
                raise ConfigError(f"{path} begins at step {run.records[0]['step']:g}, the runs end at {end:g}.")
            systems[name].append(run)
    return [Experiment(name, tuple(members), baseline=True) for name, members in systems.items()]


def read_csv(path: Path, frames_per_step: int = 1) -> list[Run]:
    """One run for each seed of a CSV file with comments (``#``).

    Its columns are steps (or frames, or lengths), return, and perhaps seed, seconds, ``low`` and ``high`` of a band.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}.") from error
    header = {str(name).strip().lower(): name for name in (rows[0] if rows else {})}

    def column(*names: str) -> str | None:
        return next((header[name] for name in names if name in header and any(row[header[name]] for row in rows)), None)

    returns, places, seeds = column(*RETURNS), column(*STEPS, *FRAMES, *LENGTHS), column(*SEEDS)
    for found, what, known in ((returns, "returns", RETURNS), (places, "environment steps", STEPS + FRAMES)):
        if found is None:
            remedy = f"Rename one to {known[0]} (known names: {', '.join(known)})."
            columns = ", ".join(map(str, header)) or "none"
            raise ConfigError(f"{path} has no column of {what}; its columns are: {columns}. {remedy}")
    others = {"time/elapsed": column(*SECONDS), "low": column("low"), "high": column("high")}
    by_seed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(rows, start=1):
        if not row[returns]:  # a logger that writes evaluations and training into one table leaves cells empty
            continue
        records = by_seed[row[seeds] if seeds else ""]
        try:
            step = float(row[places]) / (frames_per_step if places == column(*FRAMES) else 1)
            if places == column(*LENGTHS):
                step += records[-1]["step"] if records else 0
            numbers = {name: float(row[own]) for name, own in others.items() if own and row[own]}
            records.append({"step": step, RETURN: float(row[returns]), **numbers})
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: row {number} below the header is not made of numbers ({error}).") from error
    ordered = [sorted(records, key=lambda record: record["step"]) for records in by_seed.values()]
    return [Run(path, {"seed": seed}, records, frames_per_step) for seed, records in enumerate(ordered)]


def group(runs: Iterable[Run]) -> list[Experiment]:
    """Gather runs that are the same but for their seeds; experiments are named by the settings in which they differ."""
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[repr(sorted(_essence(run).items()))].append(run)
    experiments = []
    for members in groups.values():
        peers = [_essence(other[0]) for other in groups.values() if other[0].environment == members[0].environment]
        different = [
            f"{key.rpartition('.')[2]}={f'{value:g}' if isinstance(value, float) else as_word(value)}"
            for key, value in _essence(members[0]).items()
            if any(peer.get(key) != value for peer in peers)
        ]
        shown = ", ".join(different[:3]) + (" …" if len(different) > 3 else "")
        experiments.append(Experiment(shown, tuple(members)))
    return experiments


def _essence(run: Run) -> dict[str, Any]:
    """All settings that make it the experiment that it is; a size by its name."""
    size = run.values.get("size")
    values = {**run.values, "size": size_name(size) or size}
    given = {key: value for key, value in leaves(values).items() if value not in (None, {})}  # old runs have none
    same = tuple(f"{name}." for name in SAME_EXPERIMENT)
    return {key: value for key, value in given.items() if not f"{key}.".startswith(same)}


def smooth(curve: Curve, points: int) -> Curve:
    """Each value as the mean of about ``points`` around it, of fewer at the ends."""
    half, count = points // 2, len(curve.x)
    if half < 1 or count < 2:
        return curve
    window = np.ones(2 * half + 1)
    sums, counts = (np.convolve(values, window)[half : half + count] for values in (curve.y, np.ones(count)))
    return Curve(curve.x, sums / counts)


def thin(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """At most so many points, each the mean of those that it stands for; never two at the same place."""
    places, where = np.unique(curve.x, return_inverse=True)
    if len(places) > most:
        cells = ((curve.x - places[0]) / (places[-1] - places[0]) * most).astype(int).clip(max=most - 1)
        where = np.unique(cells, return_inverse=True)[1]
    counts = np.bincount(where)
    return Curve(np.bincount(where, curve.x) / counts, np.bincount(where, curve.y) / counts)


def over_seeds(curves: Sequence[Curve], most: int = MOST_POINTS) -> Band:
    """Median and quartiles over runs, each from its first point to its last, interpolated; at evenly spaced places."""
    curves = [thin(curve, most) for curve in curves if curve.x.size]
    if not curves:
        return Band(*np.empty((5, 0)))
    x = np.unique(np.concatenate([curve.x for curve in curves]))  # [points]
    if len(x) > most:
        x = np.linspace(x[0], x[-1], most)
    values = np.stack([np.interp(x, curve.x, curve.y, np.nan, np.nan) for curve in curves])  # [runs, points]
    runs = np.isfinite(values).sum(0)
    x, values, runs = x[runs > 0], values[:, runs > 0], runs[runs > 0]  # a gap between two runs has none
    percentile = np.nanpercentile if (runs < len(curves)).any() else np.percentile  # which is much faster
    low, median, high = percentile(values, (25, 50, 75), axis=0)
    return Band(x, median, low, high, runs)
