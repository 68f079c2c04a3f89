"""Open-loop predictions as a video and a still picture: images beside each other, numbers as curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch import Tensor

from dreamer_torchrl.modules.spaces import Image, key_name
from dreamer_torchrl.record.video import whole, write_video
from dreamer_torchrl.views.imagination import OpenLoop
from dreamer_torchrl.views.plots import PALETTE, QUIET, REFERENCE, fit_y_axis, new_figure, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REAL, SEEN, PREDICTED = "#222222", PALETTE[0], PALETTE[1]  # what was recorded, its reconstruction, the open loop
DPI = 100
MOST_IMAGES, MOST_NUMBERS = 2, 8  # of an observation
MOMENTS = 8  # in the still picture
MARGIN, GAP, BORDER, HEAD, LABEL, CHART = 16, 14, 3, 66, 24, 95  # pixels


class Strip(NamedTuple):
    name: str
    kind: str
    pictures: np.ndarray  # [T, h, w, 3] bytes


class Curve(NamedTuple):
    title: str
    real: Tensor | None  # [T], recorded
    seen: Tensor | None  # reconstructed from the posterior
    predicted: Tensor | None  # by the open loop


class Sheet(NamedTuple):
    picture: np.ndarray  # [H, W, 3]
    tiles: list[tuple[slice, slice]]
    charts: list[tuple[slice, list[int]]]  # its rows, and the column of each step


def write_open_loop(loop: OpenLoop, path: Path, title: str) -> tuple[Path, Path]:
    """Write a video to ``path``, an .mp4 (a GIF where no encoder is there), and a PNG beside it; the two files."""
    from PIL import Image as Picture

    video = write_video(path, list(frames(loop, title)), fps=max(2, min(10, len(loop) // 6)))
    with whole(path.with_suffix(".png")) as unfinished:
        Picture.fromarray(still(loop, title)).save(unfinished, format="png")
    return video, path.with_suffix(".png")


def frames(loop: OpenLoop, title: str) -> Iterator[np.ndarray]:
    """One frame ``[H, W, 3]`` for each step: the images of that step, and a cursor in the curves."""
    strips = strips_of(loop)
    sheet = draw_sheet(loop, title, 960, 4, [strip.name for strip in strips], strips[:1])
    for step in range(len(loop)):
        frame = sheet.picture.copy()
        for tile, strip in zip(sheet.tiles, strips, strict=True):
            paste(frame, tile, strip, loop, step)
        for rows, at in sheet.charts:
            frame[rows, at[step] - 1 : at[step] + 1] = border("open loop", loop, step)
        yield frame


def still(loop: OpenLoop, title: str) -> np.ndarray:
    """The prediction at a glance, ``[H, W, 3]``: images of some moments side by side, and all curves."""
    strips, moments = strips_of(loop), np.linspace(0, len(loop) - 1, MOMENTS).round().astype(int).tolist()
    pairs = [(strip, step) for strip in strips for step in moments]
    labels = [f"{strip.name}, step {loop.start + step}" for strip, step in pairs]
    sheet = draw_sheet(loop, title, 1280 if strips else 960, MOMENTS, labels, strips[:1])
    for tile, (strip, step) in zip(sheet.tiles, pairs, strict=True):
        paste(sheet.picture, tile, strip, loop, step)
    return sheet.picture


def strips_of(loop: OpenLoop) -> list[Strip]:
    """All kinds of pictures of each image key; of a free imagination there is only the truth of the context."""
    keys, strips = [key for key, space in loop.spaces.items() if isinstance(space, Image)][:MOST_IMAGES], []
    seen, predicted, error = loop.reconstruction.observation, loop.prediction.observation, loop.error
    for key in keys:
        kinds = {"truth": loop.observation[key]}
        if key in predicted:
            kinds |= {"reconstruction": seen[key], "open loop": predicted[key], "error": error[key].abs()}
        for kind in kinds if not loop.imagined else ("truth", "open loop") if key in predicted else ():
            strips.append(Strip(f"{key_name(key)} {kind}" if len(keys) > 1 else kind, kind, as_bytes(kinds[kind])))
    return strips


def border(kind: str, loop: OpenLoop, step: int) -> np.ndarray:
    """Colour around an image: the open loop changes its colour with the first step that it does not see."""
    seen = kind == "reconstruction" or step < loop.context
    color = REFERENCE if kind not in ("reconstruction", "open loop") else SEEN if seen else PREDICTED
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)


def curves_of(loop: OpenLoop) -> list[Curve]:
    seen, predicted, numbers = loop.reconstruction, loop.prediction, []
    for key in (key for key, space in loop.spaces.items() if not isinstance(space, Image)):
        values = (loop.observation[key], seen.observation.get(key), predicted.observation.get(key))
        for index in range(count := values[0].shape[1]):
            name = f"{key_name(key)}[{index}]" if count > 1 else key_name(key)
            numbers.append(Curve(name, *(None if value is None else value[:, index] for value in values)))
    real = [curve.real if curve.predicted is None or not loop.imagined else curve.predicted for curve in numbers]
    varied = sorted(range(len(numbers)), key=lambda index: -float(real[index].var(unbiased=False)))
    return [
        *(numbers[index] for index in sorted(varied[:MOST_NUMBERS])),
        Curve("reward", loop.reward, seen.reward, predicted.reward),
        Curve("probability of continuing", 1 - loop.terminated, seen.continuation, predicted.continuation),
        Curve("value", None, seen.value, predicted.value),
        Curve("entropy of the policy (nats)", None, seen.entropy, predicted.entropy),
        Curve("KL of posterior from prior (nats)", None, loop.kl, None),
    ]


def draw_sheet(
    loop: OpenLoop, title: str, width: int, columns: int, labels: Sequence[str], strips: Sequence[Strip]
) -> Sheet:
    """Title, a label for each image, and curves; the images, all of one shape, are pasted later, which is faster."""
    wide = (width - 2 * MARGIN + GAP) // columns - GAP  # one image
    high = max(1, round(wide * strips[0].pictures.shape[1] / strips[0].pictures.shape[2])) if strips else 0
    curves = curves_of(loop)
    lines, charts = -(-len(labels) // columns), -(-len(curves) // 2)
    top = HEAD + lines * (LABEL + high + GAP)  # of the charts
    height = top + charts * CHART + 36
    height += height % 2  # as videos need it
    figure = new_figure(width / DPI, height / DPI, layout=None)

    def write(left: int, upper: int, text: str, **style: object) -> None:
        figure.text(left / width, 1 - upper / height, text, va="top", **style)

    write(MARGIN, 12, title, size=11, weight="bold")
    write(MARGIN, 36, caption(loop), size=8.5, color=QUIET)
    tiles = []
    for number, label in enumerate(labels):
        left, upper = MARGIN + number % columns * (wide + GAP), HEAD + number // columns * (LABEL + high + GAP)
        write(left, upper + 4, label, size=9 if columns < MOMENTS else 8)
        tiles.append((slice(upper + LABEL, upper + LABEL + high), slice(left, left + wide)))
    places = []
    for number, curve in enumerate(curves):
        column, row = divmod(number, charts)
        left, lower = 58 + column * width // 2, height - (top + (row + 1) * CHART) + 10
        axes = figure.add_axes((left / width, lower / height, (width // 2 - 76) / width, (CHART - 35) / height))
        draw_curve(axes, curve, loop, last=row == charts - 1 or number == len(curves) - 1)
        at = [round(axes.transData.transform((loop.start + step, 0))[0]) for step in range(len(loop))]
        box = axes.get_window_extent()
        places.append((slice(height - int(box.y1), height - int(box.y0)), at))
    figure.canvas.draw()
    return Sheet(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy(), tiles, places)


def caption(loop: OpenLoop) -> str:
    plural = "s" if loop.context > 1 else ""
    who = "the policy acts in the model" if loop.imagined else "it knows only the actions"
    text = f"The model sees {loop.context} step{plural} (shaded), then {who}. "
    seen = "reconstruction" if loop.prediction.observation else "posterior"
    text += f"Black: recorded. Blue: {seen}. Orange: open loop."
    images = sum(isinstance(space, Image) for space in loop.spaces.values())
    numbers = sum(loop.observation[key].shape[1] for key, space in loop.spaces.items() if not isinstance(space, Image))
    kinds = ((MOST_IMAGES, images, "images"), (MOST_NUMBERS, numbers, "numbers"))
    shown = ", ".join(f"{most} of {count} {kind}" for most, count, kind in kinds if count > most)
    return f"{text} Shown: {shown}." if shown else text


def draw_curve(axes: Axes, curve: Curve, loop: OpenLoop, last: bool) -> None:
    steps = np.arange(loop.start, loop.start + len(loop))
    plain(axes, "step of the episode" if last else "", title=curve.title)
    axes.axvspan(loop.start - 0.5, loop.start + loop.context - 0.5, color=SEEN, alpha=0.1, linewidth=0)
    dots = {"marker": "o", "markersize": 2.5} if len(loop) <= 40 else {}
    begin = loop.context - 1  # from where reconstruction and prediction part
    for values, color, first in ((curve.real, REAL, 0), (curve.seen, SEEN, 0), (curve.predicted, PREDICTED, begin)):
        if values is not None:
            width = 2 if color == REAL else 1.3
            axes.plot(steps[first : len(values)], values[first:].numpy(), color=color, linewidth=width, **dots)
    axes.margins(y=0.12)
    axes.set_xlim(loop.start - 0.5, loop.start + len(loop) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelbottom=last)
    fit_y_axis(axes, labels=3)


def paste(picture: np.ndarray, tile: tuple[slice, slice], strip: Strip, loop: OpenLoop, step: int) -> None:
    if step >= len(strip.pictures):
        return  # nothing was recorded
    source, sides = strip.pictures[step], [place.stop - place.start for place in tile]
    rows, columns = (np.arange(side) * size // side for side, size in zip(sides, source.shape, strict=False))
    picture[tuple(slice(p.start - BORDER, p.stop + BORDER) for p in tile)] = border(strip.kind, loop, step)
    picture[tile] = source[np.ix_(rows, columns)]


def as_bytes(pixels: Tensor) -> np.ndarray:
    channels = 3 if pixels.shape[-1] % 3 == 0 else 1
    return (255 * pixels[..., -channels:].float().clamp(0, 1)).round().byte().numpy().repeat(3 // channels, -1)
