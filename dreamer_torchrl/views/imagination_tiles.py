"""Images of a dream as tiles side by side: truth, reconstruction, dream and their difference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tensordict import NestedKey
from torch import Tensor

from dreamer_torchrl.modules.spaces import Image
from dreamer_torchrl.views.imagination import Dream
from dreamer_torchrl.views.plots import PALETTE, REFERENCE

REAL, SEES, DREAMS = "#222222", PALETTE[0], PALETTE[1]
"""Colours of what is so, of what is believed with open eyes, and of what is dreamt: of lines and of borders."""

MOST_IMAGES = 2  # of an observation
MARGIN, GAP, BORDER, LINE = 16, 14, 4, 20  # dots: around all, between tiles, around a tile, of a line of text


@dataclass(frozen=True)
class Grid:
    """Tiles of one size, ``[height, width]`` dots each, with names of rows and columns."""

    rows: Sequence[str]
    columns: Sequence[str]
    height: int
    width: int
    indent: int = 0
    top: int = MARGIN + 5 * LINE

    @property
    def bottom(self) -> int:
        return self.top + len(self.rows) * (self.height + GAP)

    def place(self, row: int, column: int) -> tuple[int, int]:
        """Upper left corner of a tile."""
        left = MARGIN + BORDER + self.indent
        return self.top + row * (self.height + GAP), left + column * (self.width + GAP)

    def paint(self, picture: np.ndarray, row: int, column: int, tile: np.ndarray, color: str) -> None:
        """Put a tile ``[h, w, 3]`` in its place, as large as fits and with a border around it."""
        tile = scaled(tile, self.width)
        top, left = self.place(row, column)
        bottom, right = top + tile.shape[0], left + tile.shape[1]
        picture[top - BORDER : bottom + BORDER, left - BORDER : right + BORDER] = rgb(color)
        picture[top:bottom, left:right] = tile


def kinds_of(dream: Dream) -> dict[str, str]:
    """The columns of tiles, with a line about each."""
    if dream.imagined:
        return {"truth": "truth\nas long as it is seen", "dream": f"dream\nafter step {dream.last_seen}"}
    return {
        "truth": "truth\nwhat happened",
        "reconstruction": "reconstruction\nsees every step",
        "dream": f"dream\nafter step {dream.last_seen}",
        "difference": "difference\ndream and truth",
    }


def border(kind: str, dream: Dream, step: int) -> str:
    """Colour around a tile: who believes it, and the dream changes with its first step that is not seen."""
    if kind == "dream":
        return SEES if step < dream.context else DREAMS
    return SEES if kind == "reconstruction" else REFERENCE


def is_there(kind: str, dream: Dream, step: int) -> bool:
    """Whether there is a tile: of a free imagination nothing is true after its context."""
    return not (dream.imagined and kind == "truth" and step >= dream.context)


def image_tiles(dream: Dream) -> dict[NestedKey, list[np.ndarray]]:
    """Of each image key that is drawn its kinds of tiles, ``[T, h, w, 3]`` bytes each."""
    keys = [key for key, space in dream.spaces.items() if isinstance(space, Image)][:MOST_IMAGES]
    tiles = {}
    for key in keys:
        of_kind = {
            "truth": dream.observation[key],
            "reconstruction": dream.reconstruction.observation[key],
            "dream": dream.open_loop.observation[key],
            "difference": dream.difference[key].abs(),
        }
        tiles[key] = [colours(of_kind[kind]) for kind in kinds_of(dream)]
    return tiles


def scaled(tile: np.ndarray, room: int) -> np.ndarray:
    """Each dot of a tile ``[h, w, 3]`` several times, or each second, third, ... one: as wide as the room allows.

    Example:
        >>> scaled(np.zeros((48, 64, 3)), 200).shape, scaled(np.zeros((160, 161, 3)), 128).shape
        ((144, 192, 3), (80, 81, 3))
    """
    width = tile.shape[1]
    factor, step = max(1, room // width), -(-width // room)
    return tile[::step, ::step].repeat(factor, 0).repeat(factor, 1)


def sides_of(tiles: dict[NestedKey, list[np.ndarray]], room: int) -> tuple[int, int]:
    """Height and width of a scaled tile: all images of an agent are of one size."""
    return scaled(next(iter(tiles.values()))[0][0], room).shape[:2]


def colours(pixels: Tensor) -> np.ndarray:
    """Pixels in [0, 1] ``[T, h, w, c]`` to bytes ``[T, h, w, 3]``: of stacked frames the newest, nothing is light."""
    channels = 3 if pixels.shape[-1] % 3 == 0 else 1
    shown = pixels[..., -channels:].float().nan_to_num(0.9).clamp(0, 1)
    return (255 * shown).round().byte().numpy().repeat(3 // channels, -1)


def rgb(color: str) -> np.ndarray:
    """A colour such as ``#0072b2`` as three bytes."""
    return np.frombuffer(bytes.fromhex(color[1:]), np.uint8)
