"""Dreams as pictures: a video with the truth beside what the model believes, and a still of its moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from dreamer_torchrl.modules.spaces import Image, key_name
from dreamer_torchrl.record.video import write_video
from dreamer_torchrl.views.imagination import Dream
from dreamer_torchrl.views.imagination_tiles import (
    BORDER,
    DREAMS,
    GAP,
    LINE,
    MARGIN,
    MOST_IMAGES,
    REAL,
    SEES,
    Grid,
    border,
    image_tiles,
    is_there,
    kinds_of,
    rgb,
    sides_of,
)
from dreamer_torchrl.views.plots import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILM_WIDTH, STILL_WIDTH, DPI = 960, 1280, 100  # dots
MOMENTS = 8  # in a still

MOST_NUMBERS = 8  # of an observation

NAME = 110  # dots that the name of a row of tiles takes
PITCH, AXIS = 76, 46  # dots from one panel to the next, and left of each for the numbers of its axis


@dataclass(frozen=True)
class Curve:
    """What one panel shows, ``[T]`` each: what was so, what is believed with open eyes, what is dreamt."""

    title: str
    real: Tensor | None
    sees: Tensor | None
    dreams: Tensor | None
    limits: tuple[float | None, float | None] = (None, None)


@dataclass(frozen=True)
class Panel:
    """Where a drawn panel lies in the picture, and at which column of dots each step."""

    rows: slice
    columns: slice
    at: list[int]


def write_dream(dream: Dream, path: Path, title: str) -> tuple[Path, Path]:
    """Write a dream's video to ``path``, an .mp4, and its still beside it, a PNG; the two files.

    The video is a GIF where no encoder is there. Raises ``OSError`` where nothing can be written.
    """
    from PIL import Image as Picture

    video = write_video(path, list(film(dream, title)), fps=frames_per_second(len(dream)))
    picture = path.with_suffix(".png")
    unfinished = picture.with_name(f".{picture.name}.unfinished")
    try:
        Picture.fromarray(still(dream, title)).save(unfinished, format="png")
        unfinished.replace(picture)
    finally:
        unfinished.unlink(missing_ok=True)
    return video, picture


def frames_per_second(steps: int) -> int:
    """Slow enough to follow a short dream, and not long for a long one.

    Example:
        >>> frames_per_second(8), frames_per_second(64)
        (2, 10)
    """
    return max(2, min(10, steps // 6))


def film(dream: Dream, title: str) -> Iterator[np.ndarray]:
    """One frame ``[H, W, 3]`` per step: the tiles of that step, below them the curves up to it, the rest faded."""
    tiles, grid = image_tiles(dream), None
    if tiles:
        names = [key_name(key) for key in tiles] if len(tiles) > 1 else [""]
        indent = NAME if len(tiles) > 1 else 0
        kinds = kinds_of(dream)
        sides = sides_of(tiles, (FILM_WIDTH - 2 * MARGIN - indent) // max(4, len(kinds)) - GAP)
        grid = Grid(names, list(kinds.values()), *sides, indent)
    clear, panels = sheet(dream, title, FILM_WIDTH, grid)
    faded = clear.copy()
    for panel in panels:
        faded[panel.rows, panel.columns] = 255 - (255 - clear[panel.rows, panel.columns]) // 4
    for step in range(len(dream)):
        frame = faded.copy()
        for panel in panels:
            now = panel.at[step]
            frame[panel.rows, panel.columns.start : now] = clear[panel.rows, panel.columns.start : now]
            frame[panel.rows, now - 1 : now + 1] = rgb(border("dream", dream, step))
        for row, of_key in enumerate(tiles.values()):
            for column, (kind, pictures) in enumerate(zip(kinds_of(dream), of_key, strict=True)):
                if is_there(kind, dream, step):
                    grid.paint(frame, row, column, pictures[step], border(kind, dream, step))
        yield frame


def still(dream: Dream, title: str) -> np.ndarray:
    """A dream at a glance, ``[H, W, 3]``: moments side by side, below them all curves."""
    tiles, kinds = image_tiles(dream), list(kinds_of(dream))
    if not tiles:
        return sheet(dream, title, FILM_WIDTH, None)[0]
    pictures = [(kind, images) for of_key in tiles.values() for kind, images in zip(kinds, of_key, strict=True)]
    moments = np.unique(np.linspace(0, len(dream) - 1, min(MOMENTS, len(dream))).round().astype(int)).tolist()
    sides = sides_of(tiles, (STILL_WIDTH - 2 * MARGIN - NAME) // MOMENTS - GAP)
    names = [key_name(key) + "\n" + kind if len(tiles) > 1 else kind for key in tiles for kind in kinds]
    columns = [f"step {dream.start + moment}" for moment in moments]
    grid = Grid(names, columns, *sides, NAME, MARGIN + 4 * LINE)
    picture = sheet(dream, title, STILL_WIDTH, grid)[0].copy()
    for row, (kind, images) in enumerate(pictures):
        for column, moment in enumerate(moments):
            if is_there(kind, dream, moment):
                grid.paint(picture, row, column, images[moment], border(kind, dream, moment))
    return picture


# Curves


def curves_of(dream: Dream) -> list[list[Curve]]:
    """What is drawn below the tiles, in one or two columns: numbers that are observed, and what heads and actor say."""
    sees, dreams = dream.reconstruction, dream.open_loop
    said = [
        Curve("reward", dream.reward, sees.reward, dreams.reward),
        Curve("probability to go on", 1 - dream.terminated, sees.continuation, dreams.continuation, (-0.1, 1.15)),
        Curve("value: return expected from here on", None, sees.value, dreams.value),
        Curve("entropy of the policy (nats)", None, sees.entropy, dreams.entropy),
        Curve("KL: how much a step surprises the model (nats)", None, dream.kl, None, (0, None)),
    ]
    seen = observed_numbers(dream)
    return [seen, said] if seen else [said]


def observed_numbers(dream: Dream) -> list[Curve]:
    """The numbers that vary most in what is seen, in their own order."""
    curves = []
    for key, space in dream.spaces.items():
        if isinstance(space, Image):
            continue
        values = (dream.observation[key], dream.reconstruction.observation[key], dream.open_loop.observation[key])
        count = values[0].shape[1]
        for index in range(count):
            name = f"{key_name(key)}[{index}]" if count > 1 else key_name(key)
            curves.append(Curve(name, *(value[:, index] for value in values)))
    varied = sorted(range(len(curves)), key=lambda index: -variance(curves[index], dream))
    return [curves[index] for index in sorted(varied[:MOST_NUMBERS])]


def variance(curve: Curve, dream: Dream) -> float:
    """How much a number varies, in the dream where nothing else is known."""
    return float((curve.dreams if dream.imagined else curve.real).var(unbiased=False))


# The sheet: all that stands still, drawn once


def sheet(dream: Dream, title: str, width: int, grid: Grid | None) -> tuple[np.ndarray, list[Panel]]:
    """Draw names, titles and curves into a picture ``[H, W, 3]`` with room for the tiles; where the panels lie."""
    columns = curves_of(dream)
    head = grid.bottom + 4 if grid else MARGIN + 2 * LINE + 8  # of the legend
    top = head + LINE + 10
    room = PITCH * max(map(len, columns))
    height = top + room + MARGIN + LINE
    height += height % 2  # as videos want it
    figure = new_figure(width / DPI, height / DPI)
    figure.set_layout_engine("none")  # every place is counted in dots here
    write(figure, MARGIN, MARGIN, title, size=11, weight="bold")
    write(figure, MARGIN, MARGIN + LINE, how_to_read(dream), color="#666666")
    if grid:
        write_names(figure, grid)
    write_legend(figure, dream, head)
    axes = []
    for number, curves in enumerate(columns):
        left = MARGIN + number * width // len(columns) + AXIS
        right = (number + 1) * width // len(columns) - MARGIN
        pitch = room / len(curves)
        for row, curve in enumerate(curves):
            above = top + row * pitch + LINE
            box = (left / width, 1 - (above + pitch - LINE - 8) / height)
            area = figure.add_axes((*box, (right - left) / width, (pitch - LINE - 8) / height))
            draw_curve(area, curve, dream, last=row == len(curves) - 1)
            axes.append(area)
    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()
    return picture, [panel_of(area, dream, height) for area in axes]


def panel_of(axes: Axes, dream: Dream, height: int) -> Panel:
    """Find a drawn panel's dots again, just inside its axes."""
    box = axes.get_window_extent()
    at = [round(axes.transData.transform((dream.start + step, 0))[0]) for step in range(len(dream))]
    return Panel(slice(height - int(box.y1), height - int(box.y0) - 1), slice(int(box.x0) + 2, int(box.x1)), at)


def how_to_read(dream: Dream) -> str:
    """The picture in two sentences, and a third where it does not show all that is observed."""
    sees = f"The model sees {dream.context} step{'s' if dream.context > 1 else ''} (shaded), then its eyes are closed. "
    if dream.imagined:
        sees += "From there on it acts in its dream, without any environment."
    else:
        sees += "From there on it dreams what comes, knowing only the actions."
    images = sum(isinstance(space, Image) for space in dream.spaces.values())
    numbers = sum(
        dream.observation[key].shape[1] for key, space in dream.spaces.items() if not isinstance(space, Image)
    )
    kinds = ((MOST_IMAGES, images, "images"), (MOST_NUMBERS, numbers, "numbers"))
    shown = ", ".join(f"{most} of {count} {kind}" for most, count, kind in kinds if count > most)
    return f"{sees} Shown: {shown}." if shown else sees


def write(figure: Figure, left: int, top: int, text: str, size: float = 9, **style: str) -> None:
    """Text with its upper left corner at these dots."""
    width, height = figure.get_size_inches() * DPI
    figure.text(left / width, 1 - top / height, text, va="top", size=size, **style)


def write_names(figure: Figure, grid: Grid) -> None:
    """Names of rows and columns beside and above the tiles; a second line of a name is smaller."""
    for column, name in enumerate(grid.columns):
        first, _, second = name.partition("\n")
        _, left = grid.place(0, column)
        lines = 2 if second else 1
        write(figure, left, grid.top - BORDER - lines * LINE + 2, first, size=10)
        write(figure, left, grid.top - BORDER - LINE + 2, second, size=8, color="#666666")
    for row, name in enumerate(grid.rows):
        top, _ = grid.place(row, 0)
        write(figure, MARGIN, top + grid.height // 2 - LINE // 2, name, size=10)


def write_legend(figure: Figure, dream: Dream, top: int) -> None:
    """What the three colours mean, in words of these colours."""
    last = dream.last_seen
    texts = ((REAL, "real"), (SEES, "model that sees each step"), (DREAMS, f"model that dreams after step {last}"))
    left = MARGIN + AXIS
    for color, text in texts:
        write(figure, left, top, "\u2501 " + text, color=color)
        left += 40 + 7 * len(text)


def draw_curve(axes: Axes, curve: Curve, dream: Dream, last: bool) -> None:
    """One small panel; the steps that the dream sees are shaded."""
    steps = np.arange(dream.start, dream.start + len(dream))
    dreamt = slice(dream.context - 1, None)  # from where the two part
    plain(axes, "step of the episode" if last else "")
    axes.ticklabel_format(axis="y", useOffset=False)  # an offset would lie over the title
    axes.set_title(curve.title, fontsize=9, loc="left", y=1.0, pad=3)  # found by itself, y takes half of all the time
    axes.axvspan(dream.start - 0.5, dream.start + dream.context - 0.5, color=SEES, alpha=0.1, linewidth=0)
    dots = {"marker": "o", "markersize": 2.5} if len(dream) <= 40 else {}
    if curve.real is not None:
        axes.plot(steps, curve.real.numpy(), color=REAL, linewidth=2.2, alpha=0.75, **dots)
    if curve.sees is not None:
        axes.plot(steps, curve.sees.numpy(), color=SEES, linewidth=1.3, **dots)
    if curve.dreams is not None:
        axes.plot(steps[dreamt], curve.dreams[dreamt].numpy(), color=DREAMS, linewidth=1.3, **dots)
    axes.margins(y=0.12)
    axes.set_ylim(*curve.limits)
    axes.set_xlim(dream.start - 0.5, dream.start + len(dream) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(nbins=3)
    axes.xaxis.set_visible(last)  # one axis of time is enough, and ticks are what takes most time to draw
