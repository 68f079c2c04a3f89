"""Charts of runs, drawn by matplotlib: one figure for the `plot` command, one SVG for each panel of a report."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dreamer_torchrl.views.curves import EVALUATION, RETURN, Axis, Experiment, Run, group, thin

if TYPE_CHECKING:  # matplotlib takes half a second to import, and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which colour-blind readers can tell apart; further lines begin again with another dash.
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
DASHES = ("-", "--", ":", "-.")
REFERENCE = "#8a8a8a"
INK, QUIET, GRID = "#22262b", "#5b6470", "#dfe3e8"
# Colours that a page replaces by its own, so that one SVG serves light and dark.
CSS_NAMES = {INK: "--ink", QUIET: "--quiet", GRID: "--edge", PALETTE[0]: "--line-0"}
MOST_DOTS, MOST_MARKERS = 1500, 60
LOG_FROM = 30.0  # a loss whose largest value is so many times its smallest has a logarithmic axis
X_LABELS = {"steps": "environment steps", "frames": "environment frames", "hours": "hours of training"}
TITLES = {
    RETURN: ("Return of training episodes", "return"),
    EVALUATION: ("Return in evaluations", "mean return"),
    "rate/steps_per_second": ("Environment steps per second", ""),
    "rate/updates_per_second": ("Updates per second", ""),
}
UNITS = {"share/": "share of the time", "time/": "seconds", "memory/": "bytes"}


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    metrics: tuple[str, ...]
    experiments: tuple[Experiment, ...]
    large: bool = False  # with a legend
    axis: Axis = "steps"
    smoothing: int | None = None  # points of a mean; None: by their number


def return_panels(experiments: Sequence[Experiment]) -> list[Panel]:
    """The learning curves, one panel for each environment; baselines stand in all of them."""
    names = list(dict.fromkeys(each.environment for each in experiments if not each.baseline))
    panels = []
    for name in names:
        own = tuple(each for each in experiments if each.baseline or each.environment == name)
        title = name if len(names) > 1 else "Return"
        panels.append(Panel(title, "return of an episode", (RETURN, EVALUATION), own, large=True))
    return panels


def detail_panels(experiments: Sequence[Experiment]) -> list[Panel]:
    own = tuple(each for each in experiments if not each.baseline)
    metrics = list(dict.fromkeys(name for each in own for run in each.runs for name in run.metrics))
    kinds = ("train/loss_", "train/(kl|entropy)", "rate/(steps|updates)_per_second")
    return [metric_panel(name, own) for kind in kinds for name in metrics if re.match(kind, name)]


def metric_panel(metric: str, experiments: Sequence[Experiment], large: bool = False) -> Panel:
    title = metric.removeprefix("train/").replace("_", " ").replace("loss ", "loss: ")
    unit = next((unit for start, unit in UNITS.items() if metric.startswith(start)), "")
    title, unit = TITLES.get(metric, (title[:1].upper() + title[1:], unit))
    if metric not in (RETURN, EVALUATION):
        experiments = [each for each in experiments if not each.baseline]
    return Panel(title, unit, (metric,), tuple(experiments), large)


def draw(
    runs: Sequence[Run],
    axis: Axis = "steps",
    metrics: Sequence[str] = (),
    smoothing: int | None = None,
    title: str | None = None,
    baselines: Sequence[Experiment] = (),
) -> Figure:
    """All charts in one figure: of ``metrics``, or of returns, losses and rates, as means over ``smoothing`` points."""
    experiments = [*group(runs), *baselines]
    blocks = [(return_panels(experiments), 3, 3.6), (detail_panels(experiments), 4, 1.8)]
    if metrics:
        blocks = [([metric_panel(name, experiments, large=True) for name in metrics], 2, 3.2)]
    blocks = [(panels, -(-len(panels) // columns), columns, height) for panels, columns, height in blocks if panels]
    heights = [rows * height for _, rows, _, height in blocks]  # inches
    figure = new_figure(10.5, sum(heights) + 0.6)
    environments = ", ".join(dict.fromkeys(run.environment for run in runs))
    figure.suptitle(title or environments, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK)
    parts = figure.subfigures(len(blocks), 1, squeeze=False, height_ratios=heights)
    for part, (panels, rows, columns, _) in zip(parts[:, 0], blocks, strict=True):
        for place, panel in enumerate(panels, start=1):
            axes = part.add_subplot(rows, min(len(panels), columns), place)
            draw_panel(axes, replace(panel, axis=axis, smoothing=smoothing), experiments)
    if any(len(each.runs) > 1 for each in experiments):
        note = "Lines: median of the runs, pale where some have no values. Bands: lower to upper quartile."
        figure.supxlabel(note, x=0.01, ha="left", fontsize=8, color=QUIET)
    return figure


def draw_panel(axes: Axes, panel: Panel, experiments: Sequence[Experiment]) -> None:
    plain(axes, X_LABELS[panel.axis] if panel.large else panel.axis, panel.unit, panel.title)
    own = [run for each in panel.experiments if not each.baseline for run in each.runs]
    end = max((run.end(panel.axis) for run in own), default=0) or 1
    for each in panel.experiments:
        for metric in (RETURN,) if each.baseline else panel.metrics:
            draw_line(axes, panel, each, metric, experiments, end)
    if not axes.has_data():
        axes.text(0.5, 0.5, "not measured yet", transform=axes.transAxes, ha="center", color=QUIET, fontsize=9)
        axes.set(xticks=[], yticks=[])
        return
    axes.set_xlim(0, end * 1.01)
    set_ticks(axes, panel)
    if panel.large and len(axes.get_legend_handles_labels()[1]) > (len(experiments) == 1):
        axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, ncols=2, loc="best")


def draw_line(
    axes: Axes, panel: Panel, experiment: Experiment, metric: str, experiments: Sequence[Experiment], end: float
) -> None:
    """Median and band of an experiment; behind them the values of a smoothed run, or an evaluation's spread."""
    axis = panel.axis
    curves = experiment.curves(metric, axis)
    if not curves:
        return
    alone, several, evaluation = len(experiments) == 1, len(panel.metrics) > 1, metric == EVALUATION
    number = panel.metrics.index(metric) if alone else experiments.index(experiment)
    color, dash = PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]
    noisy = metric.startswith(("episode/", "rate/")) and not experiment.baseline
    points = panel.smoothing or (max(1, min(len(curves[0].x) // 25, 100)) if noisy else 1)
    points = 1 if evaluation and several else points
    band = experiment.band(metric, axis, points).until(end)
    if len(curves) == 1 and points > 1 and len(curves[0].x) <= MOST_DOTS:
        axes.plot(*curves[0], ".", color=color, alpha=0.3, markersize=3.5, markeredgewidth=0)
    low, high = band.low, band.high
    if evaluation and len(experiment.runs) == 1:
        spread = thin(experiment.runs[0].curve("eval/return_std", axis)).y
        low, high = (low - spread, high + spread) if len(spread) == len(low) else (low, high)
    if (high > low).any():
        axes.fill_between(band.x, low, high, color=color, alpha=0.15, linewidth=0)
    main = evaluation or not several or experiment.baseline or not experiment.curves(EVALUATION, axis)
    look = {"color": color, "linestyle": dash, "linewidth": 1.8 if main and panel.large else 1.2}
    everywhere = band.runs >= len(curves)
    if not everywhere.all():
        axes.plot(band.x, band.median, **look, alpha=0.4)
    if evaluation and len(band.x) <= MOST_MARKERS:
        look |= {"marker": "o", "markersize": 5, "markeredgecolor": "white", "markeredgewidth": 0.7}
    if alone and several:
        look["label"] = "evaluations" if evaluation else "training episodes"
    elif main and not alone:
        look["label"] = f"{experiment.difference or experiment.environment}, {experiment.count}"
    axes.plot(band.x, np.where(everywhere, band.median, np.nan), **look)


def set_ticks(axes: Axes, panel: Panel) -> None:
    """Few round numbers; losses that fall far have a logarithmic axis."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

    axes.xaxis.set_major_locator(MaxNLocator(8 if panel.large else 4, steps=[1, 2, 2.5, 5, 10]))
    if panel.axis != "hours":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if panel.unit == "bytes":
        axes.yaxis.set_major_formatter(EngFormatter())
    if panel.metrics[0].startswith("rate/"):
        axes.set_ylim(bottom=0)
    values = np.concatenate([np.empty(0), *(line.get_ydata() for line in axes.lines)])
    values = values[np.isfinite(values)]
    if "loss" in panel.metrics[0] and values.min() > 0 and values.max() > LOG_FROM * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=5))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
    elif panel.unit != "bytes":
        fit_y_axis(axes)


def fit_y_axis(axes: Axes, labels: int = 5) -> None:
    """Few short labels; what is as good as constant is a flat line rather than noise and labels of many digits."""
    from matplotlib.ticker import EngFormatter

    low, high = axes.get_ylim()
    plain = 1e-2 <= max(abs(low), abs(high)) < 1e5  # else -7.75e-05 would not fit beside the panel, and -77.5µ does
    axes.yaxis.get_major_locator().set_params(nbins=labels)
    axes.yaxis.set_major_formatter("{x:g}" if plain else EngFormatter(sep=""))
    missing = 0.002 * max(abs(low), abs(high)) - (high - low)
    if missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)


def new_figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure of so many inches that draws into memory; a ``layout`` draws all twice to find its places."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, x_label: str = "", y_label: str = "", title: str = "") -> None:
    axes.set_xlabel(x_label, fontsize=9, color=QUIET)
    axes.set_ylabel(y_label, fontsize=9, color=QUIET)
    axes.set_title(title, fontsize=10, loc="left", color=INK, y=1.0, pad=5)  # y: searching for it is slow
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9, color=GRID, labelcolor=QUIET)
    for side, spine in axes.spines.items():
        spine.set(visible=side in ("left", "bottom"), color=GRID)


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(f".{ending}") for ending in formats]
    for file in files:
        figure.savefig(file, dpi=150)
    return files


def panel_svg(panel: Panel, experiments: Sequence[Experiment], width: float = 290, height: float = 175) -> str:
    """A panel as an ``<svg>`` element for an HTML page, with the page's colours and font, ``width`` pixels wide."""
    import matplotlib

    figure = new_figure(width / 72, height / 72, layout=None)
    figure.patch.set_visible(False)
    axes = figure.add_axes((54 / width, 36 / height, 1 - 66 / width, 1 - 60 / height))
    axes.patch.set_visible(False)
    draw_panel(axes, panel, experiments)
    # Fixed places: looking for free ones is slow.
    axes.xaxis.set_label_coords((width + 42) / width / 2, 15.5 / height, figure.transFigure)
    axes.yaxis.set_label_coords(13 / width, 0.5 + 6 / height, figure.transFigure)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": panel.title}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", file.getvalue(), flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text[text.index("<svg ") :])  # would be there once in each chart
    for color, name in CSS_NAMES.items():
        text = text.replace(color, f"var({name}, {color})")
    last = [(name, run.last(name)) for name in panel.metrics for each in panel.experiments for run in each.runs]
    spoken = "; ".join(f"{name} {value:g}" for name, value in last if value is not None) or "not measured yet"
    head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img"'
    return f'{head} aria-label="{escape(f"{panel.title}: {spoken}")}">{text.partition(">")[2]}'
