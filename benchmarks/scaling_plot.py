"""The plot of `scaling.py`: one column for each axis, time above and memory below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TIME, MEMORY = "#2a6f97", "#b5651d"

LEAST_RANGE = 10
"""Minimum ratio of a panel's axis limits, so that small growth looks flat."""


def save_plot(points: Sequence[dict[str, Any]], file: Path) -> bool:
    """Plot the measured points; False without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    measured = [point for point in points if "error" not in point]
    axes = list(dict.fromkeys(point["axis"] for point in measured))
    if not axes:
        return True
    figure = Figure(figsize=(3.2 * len(axes), 5.2), layout="constrained")
    FigureCanvasAgg(figure)  # draws into memory: no screen is needed, and no state shared with other plots
    panels = figure.subplots(2, len(axes), squeeze=False)
    for column, axis in enumerate(axes):
        mine = [point for point in measured if point["axis"] == axis]
        milliseconds = [1e3 * point["seconds"] for point in mine]
        mebibytes = [point["peak_memory"] / 2**20 for point in mine]
        _draw(panels[0][column], mine, milliseconds, TIME, f"ms per {mine[0]['timed']}")
        _draw(panels[1][column], mine, mebibytes, MEMORY, "peak memory, MiB")
        panels[1][column].set_xlabel(axis)
    figure.savefig(file, dpi=120)
    return True


def _draw(panel: Any, points: Sequence[dict[str, Any]], heights: Sequence[float], color: str, label: str) -> None:
    """One line, each point with its number; logarithmic, where a slope of one is growth in proportion."""
    values = [point["value"] for point in points]
    named = any(isinstance(value, str) for value in values)
    places = range(len(values)) if named else values
    panel.plot(places, heights, marker="o", color=color, linewidth=1.5, markersize=4)
    panel.set_yscale("log")
    if not named:
        panel.set_xscale("log")
    panel.set_xticks(list(places), [value if named else f"{value:,}" for value in values], fontsize=7)
    panel.minorticks_off()
    panel.tick_params(axis="y", labelsize=7)
    for place, height in zip(places, heights, strict=True):
        text = f"{height:.3g}" if height < 1000 else f"{height:,.0f}"
        panel.annotate(text, (place, height), textcoords="offset points", xytext=(0, 5), ha="center", fontsize=7)
    panel.margins(0.12, 0.25)
    low, high = panel.get_ylim()
    if high < LEAST_RANGE * low:
        room = math.sqrt(LEAST_RANGE * low / high)
        panel.set_ylim(low / room, high * room)
    panel.set_ylabel(label, fontsize=8)
    panel.grid(True, which="major", alpha=0.25)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
