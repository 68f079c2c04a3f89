"""Make `leaderboard.md`, the README's table of results and a picture of curves from `results/scores.csv`.

    python benchmarks/leaderboard.py

Targets are in `targets.csv`, curves in `results/curves/`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from scores import DEFAULT, RESULTS, Score, Target, read_scores, read_targets

from dreamer_torchrl.training.pretrained import PRETRAINED, pretrained_names, read_card

ROOT = Path(__file__).parents[1]
MARK = re.compile(r"(?<=<!-- made by benchmarks/leaderboard.py -->\n).*?(?=<!-- end -->)", re.DOTALL)


def of_tasks(scores: Iterable[Score]) -> list[tuple[str, list[Score]]]:
    """Runs of one task, experiment and algorithm, seeds in order; tasks in the order of the targets, then by name."""
    order = list(read_targets())
    place = {task: order.index(task) if task in order else len(order) for task in {score.task for score in scores}}
    ranked = sorted(scores, key=lambda score: (place[score.task], score.algorithm != DEFAULT, *score.run))
    groups = groupby(ranked, key=lambda score: score.run[:3])
    return [(task, list(runs)) for (task, *_), runs in groups]


def results_table(scores: list[Score], targets: dict[str, Target]) -> str:
    """Task, return and minutes of each seed, target, pretrained agents: for the README."""
    lines = ["| task | return (seeds) | minutes | target | reference | agent |", "| --- " * 6 + "|"]
    for task, runs in of_tasks(scores):
        target = targets.get(task)
        returns = ", ".join(f"{number(run.mean)}{'' if run.finished else ' (running)'}" for run in runs)
        seeds = ", ".join(str(run.seed) for run in runs)
        minutes = ", ".join(f"{run.minutes:.3g}" for run in runs)
        aim = "" if target is None else f"{number(target.mean)} in {target.minutes:.0f}"
        agent = " ".join(f"`pretrained:{name}`" for name in agents_of(task)) if runs[0].algorithm == DEFAULT else ""
        reference = target.reference if target else ""
        lines.append(f"| {runs[0].title} | {returns} ({seeds}) | {minutes} | {aim} | {reference} | {agent} |")
    return "\n".join(lines) + "\n"


def leaderboard(scores: list[Score], targets: dict[str, Target]) -> str:
    """Each run with its command, so that somebody can beat it."""
    lines = ["| task | seed | return | target | minutes | steps | commit | command |", "| --- " * 8 + "|"]
    for task, runs in of_tasks(scores):
        for run in runs:
            target = number(targets[task].mean) if task in targets else ""
            reached = f"{number(run.mean)} +- {number(run.deviation)}" + ("" if run.finished else " (running)")
            cells = [run.title, run.seed, reached, target, f"{run.minutes:.3g}", f"{run.steps:,}", run.commit]
            lines.append("| " + " | ".join(map(str, cells)) + f" | `{run.command}` |")
    return "\n".join(lines) + "\n"


def agents_of(task: str) -> list[str]:
    """Names of the agents in `pretrained/` that were trained on it; `shelve.py` puts them there."""
    return [name for name in pretrained_names() if read_card(PRETRAINED / name).task == task]


def number(value: float) -> str:
    """Two decimals below 10, else whole."""
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def filled(page: str, table: str) -> str:
    """The page with this table between its marks."""
    return MARK.sub(lambda _: f"\n{table}\n", page)


def pages() -> dict[Path, str]:
    """The pages as they are now."""
    scores, targets = read_scores(), read_targets()
    tables = {ROOT / "README.md": results_table, ROOT / "benchmarks" / "leaderboard.md": leaderboard}
    return {path: filled(path.read_text(), make(scores, targets)) for path, make in tables.items()}


def draw(path: Path) -> None:
    """Return over minutes of every run with a curve, a panel for each task."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    targets, tasks = read_targets(), of_tasks(read_scores())
    columns = 4
    rows = -(-len(tasks) // columns)
    figure = Figure((3.2 * columns, 2.4 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (task, runs) in zip(axes, tasks, strict=False):
        for run in runs:
            curve = RESULTS / "curves" / f"{run.curve_name}.csv"
            if curve.exists():
                points = list(csv.DictReader(curve.read_text().splitlines()))
                points = [(float(row["minutes"]), float(row["training"])) for row in points if row["training"]]
                axis.plot(*zip(*points, strict=True), linewidth=1)
        if task in targets:
            axis.axhline(targets[task].mean, color="gray", linewidth=0.8, linestyle="--")
        axis.set_title(runs[0].title.replace("`", ""), fontsize=9)
        axis.tick_params(labelsize=7)
    for axis in axes[len(tasks) :]:
        axis.set_visible(False)
    figure.supxlabel("minutes on two cores", fontsize=8)
    figure.supylabel("mean return of training episodes", fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
    draw(RESULTS / "curves.png")
