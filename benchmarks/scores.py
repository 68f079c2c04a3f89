"""Scores and learning curves as CSV files: what `learning.py` writes and `leaderboard.py` shows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
POINTS = 50
"""Rows of a curve."""


DEFAULT = "dreamer_v3"  # algorithm


@dataclass(frozen=True)
class Target:
    """What a task is held against: mean return of new episodes, minutes on two cores, and whose numbers these are."""

    task: str
    mean: float
    minutes: float
    episodes: int
    reference: str


@dataclass(frozen=True)
class Score:
    """One run, evaluated on episodes that training did not use; ``minutes`` are those of all its commands."""

    task: str
    experiment: str
    algorithm: str
    size: str
    seed: int
    mean: float
    deviation: float
    episodes: int
    steps: int
    frames: int
    updates: int
    minutes: float
    finished: bool
    commit: str
    date: str
    machine: str
    command: str

    @property
    def run(self) -> tuple[str, str, str, int]:
        """What a later score of the same run shares with it."""
        return self.task, self.experiment, self.algorithm, self.seed

    @property
    def title(self) -> str:
        """The task, and the algorithm unless it is the default."""
        return f"`{self.task}`" + ("" if self.algorithm == DEFAULT else f", `{self.algorithm}`")

    @property
    def curve_name(self) -> str:
        return run_name(self.task, self.experiment, self.algorithm, self.seed)


def run_name(task: str, experiment: str, algorithm: str, seed: int) -> str:
    """Of a run's folder and its curve."""
    return "-".join([task, experiment, *([] if algorithm == DEFAULT else [algorithm]), str(seed)])


def read_targets(path: Path = RESULTS.parent / "targets.csv") -> dict[str, Target]:
    """Targets by task, in the order of the file."""
    return {target.task: target for target in read_rows(path, Target)}


def read_scores(path: Path = RESULTS / "scores.csv") -> list[Score]:
    """All committed scores."""
    return read_rows(path, Score) if path.exists() else []


def add_score(score: Score, path: Path = RESULTS / "scores.csv") -> None:
    """Add a line to the file, in place of one of the same run."""
    scores = [other for other in read_scores(path) if other.run != score.run] + [score]
    rows = [asdict(each) for each in sorted(scores, key=lambda each: each.run)]
    write_rows(path, [field.name for field in fields(Score)], rows)


def write_rows(path: Path, head: list[str], rows: Iterable[dict]) -> None:
    """A CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, head, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def curve(lines: Iterable[dict], points: int = POINTS) -> list[dict]:
    """Lines of `metrics.jsonl` to rows of a curve: means of training returns over equal stretches, and evaluations."""
    lines = list(lines)
    last = max((line["step"] for line in lines), default=0)
    width = max(1, last // points)
    rows: dict[int, dict] = {}
    minutes = 0.0
    for line in lines:
        minutes = line.get("time/elapsed", minutes * 60) / 60
        end = -(-line["step"] // width) * width  # of its stretch
        row = rows.setdefault(end, {"step": line["step"], "frames": 0, "minutes": 0.0, "returns": [], "evaluation": ""})
        row["step"] = max(row["step"], line["step"])
        row["frames"] = max(row["frames"], line.get("count/frames", 0))
        row["minutes"] = round(minutes, 2)
        if "episode/return" in line:
            row["returns"].append(line["episode/return"])
        if "eval/return" in line:
            row["evaluation"] = f"{line['eval/return']:.6g}"
    for row in rows.values():
        returns = row.pop("returns")
        row["training"] = f"{sum(returns) / len(returns):.6g}" if returns else ""
    return [row for _, row in sorted(rows.items()) if row["training"] or row["evaluation"]]


def write_curve(run_dir: Path, path: Path) -> None:
    """The curve of a run's folder."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    write_rows(path, ["step", "frames", "minutes", "training", "evaluation"], curve(lines))


def read_rows(path: Path, kind: type) -> list:
    """The lines of a CSV file as objects of a dataclass."""
    readers = {"str": str, "int": int, "float": float, "bool": "True".__eq__}
    with path.open(newline="") as file:
        return [kind(**{f.name: readers[f.type](row[f.name]) for f in fields(kind)}) for row in csv.DictReader(file)]
