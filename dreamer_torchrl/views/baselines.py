"""Returns of another system from CSV files, to be drawn beside runs: Stable-Baselines3, CleanRL, or your own."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dreamer_torchrl.config.checks import ConfigError
from dreamer_torchrl.views.curves import EVALUATION, RETURN, Axis, Experiment, Run

STEPS = ("step", "steps", "global_step", "timesteps", "total_timesteps", "time/total_timesteps", "env_steps")
FRAMES = ("frames", "frame", "env_frames")
LENGTHS = ("l",)  # of episodes, in a Monitor file of Stable-Baselines3: the step is their sum
RETURNS = (
    *("return", RETURN, EVALUATION, "episode_return", "episodic_return", "charts/episodic_return", "mean_return"),
    *("rollout/ep_rew_mean", "eval/mean_reward", "ep_rew_mean", "mean_reward", "score", "value", "r"),
)
SECONDS = ("time/elapsed", "time/time_elapsed", "seconds", "t")
SEEDS = ("seed", "run")


def read_baselines(
    paths: Sequence[Path], labels: Sequence[str], runs: Sequence[Run], axis: Axis = "steps"
) -> list[Experiment]:
    """One experiment for each CSV file, drawn beside the runs; files with the same label are seeds of one.

    There is one label for each file, or one for all, or none: then the files' names.
    """
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
    """One run for each seed of a CSV file.

    Columns are found by usual names: steps (or frames, or lengths of episodes), return, and optionally seed, seconds,
    and ``low`` and ``high`` for a published band. Lines that begin with ``#`` are comments.
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
    return [
        Run(path, {"seed": seed}, sorted(records, key=lambda record: record["step"]), frames_per_step)
        for seed, records in enumerate(by_seed.values())
    ]
