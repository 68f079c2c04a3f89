"""Runs as a picture: learning curve, losses and throughput, or a diagram for each metric that is asked for.

A line is the median over the runs of an experiment, the band around it goes from the lower to the upper quartile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dreamer_torchrl.views.curves import EVALUATION, LOSSES, RETURN, Axis, Curve, Experiment, Run, group
from dreamer_torchrl.views.figures import REFERENCE, line_style, new_figure, plain
from dreamer_torchrl.views.references import Reference, known_results, official_curve

if TYPE_CHECKING:  # drawing is imported where something is drawn
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 12
"""Of the grid that panels are laid out on."""

WIDTH = 10.5
"""Of a figure, in inches."""

MOST_DOTS = 1500
"""More single values than this are a cloud, and are left out."""

MOST_MARKERS = 60

LOG_FROM = 30.0
"""A loss whose largest value is so many times its smallest is drawn on a logarithmic scale."""

LEGEND = {"fontsize": 8.5, "frameon": False, "handlelength": 2.2, "columnspacing": 1.6}
INK = "#444444"
"""Of what a legend says about all lines."""

X_LABELS = {
    "steps": "environment steps (decisions of the agent)",
    "frames": "environment frames",
    "hours": "hours of training",
}

LABELS = {
    RETURN: ("Return of training episodes", "return"),
    EVALUATION: ("Return in evaluations", "mean return"),
    "episode/length": ("Length of training episodes", "steps"),
    "eval/length": ("Length of evaluation episodes", "mean steps"),
    "rate/steps_per_second": ("Throughput: environment steps", "steps per second"),
    "rate/updates_per_second": ("Throughput: updates", "updates per second"),
    "rate/frames_per_second": ("Throughput: environment frames", "frames per second"),
}
"""Title and unit of a metric's panel; others follow from their names."""

UNITS = {"share/": "share of the time", "time/": "seconds", "memory/": "bytes", "train/entropy": "nats"}


@dataclass(frozen=True)
class Panel:
    """One diagram.

    Args:
        title, unit: above it and beside it.
        metrics: what it shows.
        experiments: of which.
        width: in columns of the grid.
        height: in inches.
    """

    title: str
    unit: str
    metrics: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    width: int
    height: float


def draw(
    runs: Sequence[Run],
    axis: Axis = "steps",
    metrics: Sequence[str] = (),
    smoothing: int | None = None,
    title: str | None = None,
) -> Figure:
    """Everything about runs in one figure, or a panel for each of some metrics.

    Args:
        runs: from `curves.read_run`.
        axis: what goes to the right.
        metrics: names in ``metrics.jsonl``; returns, losses and throughput if there are none.
        smoothing: how many neighbouring points are averaged; if left out, training episodes and rates are smoothed by
            how many there are.
        title: above everything; the environments if left out.
    """
    experiments = tuple(group(runs))
    width, height = (COLUMNS, 4.0) if len(metrics) == 1 else (COLUMNS // 2, 2.7)
    panels = [metric_panel(name, experiments, width, height) for name in metrics] or overview(experiments)
    pen = Pen(experiments, axis, smoothing)
    entries = pen.entries(panels)
    columns = 4 if max((len(entry.get_label()) for entry in entries), default=0) < 36 else 2
    rows = rows_of(panels)
    heights = [0.25 * -(-len(entries) // columns), *(max(panel.height for panel in row) for row in rows)]
    figure = new_figure(WIDTH, sum(heights) + 0.5)
    figure.get_layout_engine().set(h_pad=0.06, w_pad=0.08, hspace=0.03)
    figure.suptitle(title or heading(experiments), x=0.012, ha="left", fontsize=13, fontweight="bold")
    grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=[max(height, 0.01) for height in heights])
    if entries:
        words = figure.add_subplot(grid[0, :])
        words.axis("off")
        words.legend(handles=entries, loc="center left", bbox_to_anchor=(-0.01, 0.5), ncols=columns, **LEGEND)
    for number, row in enumerate(rows):
        start = 0
        for panel in row:
            pen.draw(figure.add_subplot(grid[number + 1, start : start + panel.width]), panel)
            start += panel.width
    return figure


def heading(experiments: Sequence[Experiment]) -> str:
    """The environments, and how many runs if all are one experiment."""
    environments = ", ".join(dict.fromkeys(each.environment for each in experiments))
    return environments if len(experiments) > 1 else f"{environments}, {experiments[0].count}"


def overview(experiments: tuple[Experiment, ...]) -> list[Panel]:
    """Returns of each environment, all losses, and throughput."""
    environments = list(dict.fromkeys(each.environment for each in experiments))
    width = COLUMNS // min(len(environments), 3)
    panels = []
    for environment in environments:
        own = tuple(each for each in experiments if each.environment == environment)
        title = environment if len(environments) > 1 else "Learning curve"
        panels.append(Panel(title, "return of an episode", (RETURN, EVALUATION), own, width, 3.4))
    panels += [metric_panel(f"train/loss_{name}", experiments, COLUMNS // 4, 1.7) for name in LOSSES]
    rates = ("rate/steps_per_second", "rate/updates_per_second")
    return panels + [metric_panel(name, experiments, COLUMNS // 2, 1.9) for name in rates]


def metric_panel(metric: str, experiments: tuple[Experiment, ...], width: int, height: float) -> Panel:
    """One metric of all experiments."""
    title, unit = label_of(metric)
    return Panel(title, unit, (metric,), experiments, width, height)


def label_of(metric: str) -> tuple[str, str]:
    """Title and unit of a metric.

    Example:
        >>> label_of("train/loss_replay_value"), label_of("memory/process_bytes")
        (('Loss: replay value', ''), ('memory/process_bytes', 'bytes'))
    """
    if metric in LABELS:
        return LABELS[metric]
    if metric.startswith("train/loss_"):
        return f"Loss: {metric.removeprefix('train/loss_').replace('_', ' ')}", ""
    return metric, next((unit for start, unit in UNITS.items() if metric.startswith(start)), "")


def rows_of(panels: Iterable[Panel]) -> list[list[Panel]]:
    """Panels side by side as long as there is room and they are of one height."""
    rows: list[list[Panel]] = []
    for panel in panels:
        if (
            rows
            and rows[-1][0].height == panel.height
            and sum(each.width for each in rows[-1]) + panel.width <= COLUMNS
        ):
            rows[-1].append(panel)
        else:
            rows.append([panel])
    return rows


def usual_smoothing(metric: str, points: int) -> int:
    """Over how many of so many points a mean goes when nothing is asked for: 1 but for what jumps about."""
    return max(1, min(points // 25, 100)) if metric.startswith(("episode/", "rate/")) else 1


def dotted(curves: Sequence[Curve], points: int) -> bool:
    """Whether single values show behind a line: those of one run, if it was smoothed and they are not too many."""
    return len(curves) == 1 and points > 1 and len(curves[0]) <= MOST_DOTS


def shows_returns(panel: Panel) -> bool:
    """Whether what others have reached belongs into a panel."""
    return bool({RETURN, EVALUATION} & set(panel.metrics))


class Pen:
    """Draws panels of the same experiments over the same axis.

    Args:
        experiments: all of the figure; each has its own colour.
        axis: what goes to the right.
        smoothing: see `draw`.
    """

    def __init__(self, experiments: Sequence[Experiment], axis: Axis, smoothing: int | None):
        self.experiments, self.axis, self.smoothing = list(experiments), axis, smoothing

    def draw(self, axes: Axes, panel: Panel) -> None:
        """Lines, references and labels of a panel."""
        plain(axes, X_LABELS[self.axis] if panel.width >= COLUMNS // 2 else self.axis, panel.unit, panel.title)
        for experiment in panel.experiments:
            for metric in panel.metrics:
                self.line(axes, panel, experiment, metric)
        if not axes.lines:
            axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", color=REFERENCE, fontsize=9)
            axes.set(xticks=[], yticks=[])
            return
        self.scale(axes, panel)
        if shows_returns(panel):
            self.references(axes, panel)

    def line(self, axes: Axes, panel: Panel, experiment: Experiment, metric: str) -> None:
        """Median and band of an experiment; behind them, if it is a single run, what was smoothed."""
        curves = self.curves(experiment, metric)
        if not curves:
            return
        colour, dash = self.style(panel, experiment, metric)
        points = self.neighbours(panel, metric, curves)
        if dotted(curves, points):
            axes.plot(curves[0].x, curves[0].y, ".", color=colour, alpha=0.3, markersize=3.5, markeredgewidth=0)
        band = experiment.band(metric, self.axis, points)
        if len(curves) > 1:
            axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
        look = {"color": colour, "linestyle": dash, "linewidth": self.weight(panel, metric)}
        everywhere = band.runs == len(curves)
        if not everywhere.all():
            axes.plot(band.x, band.median, **look, alpha=0.4)
        marker = "o" if metric == EVALUATION and len(band.x) <= MOST_MARKERS else None
        median = np.where(everywhere, band.median, np.nan)
        axes.plot(band.x, median, **look, marker=marker, markersize=5, markeredgecolor="white", markeredgewidth=0.7)

    def curves(self, experiment: Experiment, metric: str) -> list[Curve]:
        """Of all runs that have measured it."""
        return [curve for run in experiment.runs if len(curve := run.curve(metric, self.axis))]

    def neighbours(self, panel: Panel, metric: str, curves: Sequence[Curve]) -> int:
        """Over how many points each mean goes; beside training episodes an evaluation stays as it is."""
        if metric == EVALUATION and len(panel.metrics) > 1:
            return 1
        return self.smoothing or usual_smoothing(metric, max(map(len, curves)))

    def style(self, panel: Panel, experiment: Experiment, metric: str) -> tuple[str, str]:
        """Colour and dash: a colour is an experiment, or what is measured where there is only one."""
        if len(self.experiments) == 1:
            return line_style(panel.metrics.index(metric))
        return line_style(self.experiments.index(experiment))

    def weight(self, panel: Panel, metric: str) -> float:
        """How thick a line is: evaluations stand out from training episodes."""
        if panel.height < 2:
            return 1.2
        return 2.0 if metric == EVALUATION or len(panel.metrics) == 1 else 1.1

    def scale(self, axes: Axes, panel: Panel) -> None:
        """The same range to the right for all panels of the same runs; losses that fall far on a logarithmic scale."""
        from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

        axes.set_xlim(0, self.extent(panel) * 1.01)
        axes.xaxis.set_major_locator(MaxNLocator(2 * panel.width // 3 + 2, steps=[1, 2, 2.5, 5, 10]))
        if self.axis != "hours":
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.unit == "bytes":
            axes.yaxis.set_major_formatter(EngFormatter())
        values = np.concatenate([line.get_ydata() for line in axes.lines])
        values = values[np.isfinite(values)]
        if panel.metrics[0].startswith("rate/"):
            axes.set_ylim(0, 1.08 * values.max() or 1)
        if "loss" in panel.metrics[0] and values.min() > 0 and values.max() > LOG_FROM * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(numticks=5))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())

    def extent(self, panel: Panel) -> float:
        """Where the longest run of a panel ends."""
        return max(run.end(self.axis) for experiment in panel.experiments for run in experiment.runs) or 1.0

    def references(self, axes: Axes, panel: Panel) -> None:
        """What others have reached, if all runs of the panel are in one environment."""
        if len({experiment.environment for experiment in panel.experiments}) > 1:
            return
        for known in known_results(panel.experiments[0].environment):
            axes.axhline(known.mean, color=REFERENCE, linewidth=0.9, linestyle=(0, (5, 3)), zorder=1)
            if known.deviation is not None:
                edges = (known.mean - known.deviation, known.mean + known.deviation)
                axes.axhspan(*edges, color=REFERENCE, alpha=0.1, linewidth=0, zorder=0)
            place = {"xy": (0.008, known.mean), "xycoords": axes.get_yaxis_transform()}
            axes.annotate(known.label, **place, xytext=(0, 2), textcoords="offset points", fontsize=7.5, color=INK)
        curve = self.official(panel)
        if curve is not None:
            axes.plot(curve.x, curve.median, color=REFERENCE, linewidth=1.2, zorder=1)
            axes.fill_between(curve.x, curve.low, curve.high, color=REFERENCE, alpha=0.13, linewidth=0, zorder=0)

    def official(self, panel: Panel) -> Reference | None:
        """The official curve as far as the panel goes; none over hours, which nobody has told."""
        repeats = {run.frames_per_step for experiment in panel.experiments for run in experiment.runs}
        curve = official_curve(panel.experiments[0].environment)
        if curve is None or self.axis == "hours" or (self.axis == "steps" and len(repeats) > 1):
            return None
        return curve.until(self.extent(panel), repeats.pop() if self.axis == "steps" else 1)

    def entries(self, panels: Sequence[Panel]) -> list[Artist]:
        """What each colour, thick, thin and pale line, dot and band is; nothing that is not there."""
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        entries: list[Artist] = []
        several = len(self.experiments) > 1
        mixed = len({experiment.environment for experiment in self.experiments}) > 1
        for experiment in self.experiments if several else []:
            colour, dash = line_style(self.experiments.index(experiment))
            label = f"{experiment.name if mixed else experiment.difference or experiment.name}, {experiment.count}"
            entries.append(Line2D([], [], color=colour, linestyle=dash, linewidth=2.5, label=label))
        if any(len(panel.metrics) > 1 for panel in panels):
            training, evaluation = (INK, INK) if several else (line_style(0)[0], line_style(1)[0])
            entries += [
                Line2D([], [], color=training, linewidth=1.1, label="training episodes"),
                Line2D([], [], color=evaluation, linewidth=2, marker="o", markersize=5, label="evaluations"),
            ]
        if any(
            (curves := self.curves(experiment, metric)) and dotted(curves, self.neighbours(panel, metric, curves))
            for panel in panels
            for experiment in panel.experiments
            for metric in panel.metrics
        ):
            entries.append(Line2D([], [], color=INK, linestyle="", marker=".", alpha=0.4, label="single values"))
        if any(len(experiment.runs) > 1 for experiment in self.experiments):
            entries.append(Patch(color=INK, alpha=0.2, linewidth=0, label="middle half of the runs"))
        if any(len({run.end() for run in experiment.runs}) > 1 for experiment in self.experiments):
            entries.append(Line2D([], [], color=line_style(0)[0], alpha=0.4, label="not all runs have come here"))
        for label in {curve.label for panel in panels if shows_returns(panel) and (curve := self.official(panel))}:
            entries.append(Line2D([], [], color=REFERENCE, linewidth=1.6, label=label))
        if self.smoothing and self.smoothing > 1:
            entries.append(Line2D([], [], linestyle="", label=f"lines: means of {self.smoothing} neighbours"))
        return entries
