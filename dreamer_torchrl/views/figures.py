"""How our pictures look: one palette that colour-blind readers can tell apart, plain axes, PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # matplotlib takes half a second, and most commands draw nothing
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe and Ito's colours, those that also stand on white; further lines start again with another dash."""

DASHES = ("-", "--", ":", "-.")
REFERENCE = "#8a8a8a"
"""What is not ours: official curves, known results."""


def line_style(number: int) -> tuple[str, str]:
    """Colour and dash of the line with this number; no two of the first 28 are the same.

    Example:
        >>> line_style(0), line_style(7)
        (('#0072b2', '-'), ('#0072b2', '--'))
    """
    return PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches that draws into memory: no screen, no state shared with other figures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def plain(axes: Axes, x_label: str = "", y_label: str = "", title: str = "") -> None:
    """Labels, a quiet grid, and no box around it."""
    axes.set_xlabel(x_label, fontsize=9)
    axes.set_ylabel(y_label, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def save_figure(figure: Figure, path: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a figure beside ``path`` in each format; the files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(f".{ending}") for ending in formats]
    for file in files:
        figure.savefig(file, dpi=150)
    return files
