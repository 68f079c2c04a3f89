"""Pictures of dreams, looked at dot by dot, and their videos read back."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image as Picture
from torchrl.data import Bounded, Composite, OneHot, Unbounded

from dreamer_torchrl import build_agent
from dreamer_torchrl.agents.agent import Agent
from dreamer_torchrl.views.imagination import Dream, dream, imagined
from dreamer_torchrl.views.imagination_pictures import (
    curves_of,
    film,
    how_to_read,
    observed_numbers,
    sheet,
    still,
    write_dream,
)
from dreamer_torchrl.views.imagination_tiles import BORDER, DREAMS, MARGIN, SEES, colours, rgb, scaled
from dreamer_torchrl.views.plots import REFERENCE
from tests.agents.acting_examples import TINY
from tests.views.test_imagination import episode, mixed_agent, vector_agent

PIXELS = Bounded(0, 255, (48, 48, 3), dtype=torch.uint8)
CONTEXT, STEPS = 4, 9


def image_agent(**others: Unbounded) -> Agent:
    return build_agent(Composite(pixels=PIXELS, **others), OneHot(2), TINY)


@pytest.fixture(scope="module")
def seen() -> Dream:
    """Nine steps of an image task, four of them seen."""
    agent = image_agent()
    return dream(agent, episode(agent, STEPS), context=CONTEXT)


@pytest.fixture(scope="module")
def frames(seen: Dream) -> list[np.ndarray]:
    return list(film(seen, "a dream"))


def tile_corners(frame: np.ndarray, color: str) -> list[tuple[int, int]]:
    """Upper left dots of all borders of a colour: squares of it that have none above and left of them."""
    is_color = (frame == rgb(color)).all(-1)  # [H, W]
    size = 3 * BORDER
    return [
        (top, left)
        for top, left in np.argwhere(is_color).tolist()
        if is_color[top : top + BORDER, left : left + size].all()
        and is_color[top : top + size, left : left + BORDER].all()
        and not is_color[top - 1, left]
        and not is_color[top, left - 1]
    ]


def inside(frame: np.ndarray, corner: tuple[int, int], side: int) -> np.ndarray:
    """A tile without its border."""
    top, left = corner[0] + BORDER, corner[1] + BORDER
    return frame[top : top + side, left : left + side]


def test_the_border_changes_with_the_first_dreamt_step(frames: list[np.ndarray]) -> None:
    """Reconstruction and dream both see the context; then the dream is on its own."""
    assert len(frames) == STEPS
    assert len({frame.shape for frame in frames}) == 1 and frames[0].shape[0] % 2 == frames[0].shape[1] % 2 == 0
    for step, frame in enumerate(frames):
        sees, dreams = tile_corners(frame, SEES), tile_corners(frame, DREAMS)
        assert (len(sees), len(dreams)) == ((2, 0) if step < CONTEXT else (1, 1))
        assert len(tile_corners(frame, REFERENCE)) == 2  # truth and difference, believed by nobody
        assert (sees + dreams)[1][1] > (sees + dreams)[0][1]


def test_tiles_show_truth_reconstruction_dream_and_their_difference(seen: Dream, frames: list[np.ndarray]) -> None:
    """Enlarged by a whole factor, dot by dot."""
    for step in (0, CONTEXT, STEPS - 1):
        frame = frames[step]
        corners = [*tile_corners(frame, REFERENCE), *tile_corners(frame, SEES), *tile_corners(frame, DREAMS)]
        values = (
            seen.observation["pixels"],
            seen.reconstruction.observation["pixels"],
            seen.open_loop.observation["pixels"],
            (seen.open_loop.observation["pixels"] - seen.observation["pixels"]).abs(),
        )
        for corner, value in zip(sorted(corners, key=lambda corner: corner[1]), values, strict=True):
            expected = (255 * value[step]).round().byte().numpy().repeat(4, 0).repeat(4, 1)
            assert np.array_equal(inside(frame, corner, 4 * 48), expected)


def test_the_cursor_moves_and_what_comes_is_faded(seen: Dream, frames: list[np.ndarray]) -> None:
    """Up to it the curves are as they were drawn."""
    below = max(corner[0] for corner in tile_corners(frames[0], SEES)) + 4 * 48 + 2 * BORDER
    cursors = []
    for step, frame in enumerate(frames):
        color = rgb(SEES if step < CONTEXT else DREAMS)
        columns = (frame[below:] == color).all(-1).sum(0)  # [W]
        cursors.append(int(columns.argmax()))
        assert columns.max() > 5 * 30  # through all five panels
    assert np.abs(np.diff(cursors) - np.diff(cursors).mean()).max() <= 2
    first, last = frames[0].astype(int), frames[-1].astype(int)
    assert (first[below:, cursors[0] + 3 :] >= last[below:, cursors[0] + 3 :]).mean() > 0.99
    assert not np.array_equal(first[below:, cursors[-2] :], last[below:, cursors[-2] :])
    assert np.array_equal(first[below:, : cursors[0] - 2], last[below:, : cursors[0] - 2])


def test_panels_lie_where_they_are_drawn(seen: Dream) -> None:
    """The context is shaded from the left end up to half a step after it."""
    picture, panels = sheet(seen, "a dream", 960, None)
    assert len(panels) == 5
    for panel in panels:
        area = picture[panel.rows, panel.columns].astype(int)
        blue = (area[..., 0] < area[..., 2] - 10).mean(0)  # [W], a curve colours only a few dots of a column
        shaded = np.flatnonzero(blue > 0.5) + panel.columns.start
        middle = (panel.at[CONTEXT - 1] + panel.at[CONTEXT]) / 2
        assert shaded.min() <= panel.columns.start + 2 and abs(shaded.max() - middle) <= 2


def test_curves_of_numbers_are_those_that_vary_most() -> None:
    """At most eight, in their own order, with their names."""
    agent = build_agent(
        Composite(a=Unbounded((6,)), b=Composite(c=Unbounded((5,)), d=Unbounded((1,)))), OneHot(2), TINY
    )
    steps = episode(agent, STEPS)
    steps["a"] *= torch.tensor([0, 1, 2, 3, 4, 0.001])
    steps["b", "c"] *= torch.tensor([9, 0.001, 9, 9, 9])
    steps["b", "d"] *= 0
    curves = observed_numbers(dream(agent, steps))
    assert [curve.title for curve in curves] == [
        *(f"a[{i}]" for i in (1, 2, 3, 4)),
        *(f"b/c[{i}]" for i in (0, 2, 3, 4)),
    ]
    assert torch.equal(curves[1].real, steps["a"][:, 2])


def test_a_picture_says_what_it_does_not_show() -> None:
    """Where all is shown, it says nothing of that."""
    images = dict.fromkeys(("left", "middle", "right"), PIXELS)
    for others, told in (
        ({"speed": Unbounded((9,))}, "actions. Shown: 8 of 9 numbers."),
        ({**images, "speed": Unbounded((8,))}, "actions. Shown: 2 of 3 images."),
        ({**images, "pace": Unbounded((9,)), "speed": Unbounded((1,))}, "Shown: 2 of 3 images, 8 of 10 numbers."),
        ({"left": PIXELS, "right": PIXELS, "speed": Unbounded((8,))}, "knowing only the actions."),
    ):
        agent = build_agent(Composite(others), OneHot(2), TINY)
        assert how_to_read(dream(agent, episode(agent, 6), context=2)).endswith(told)


def test_vectors_are_curves_beside_what_heads_and_actor_say() -> None:
    agent = vector_agent()
    seen = dream(agent, episode(agent), context=5)
    observed, said = curves_of(seen)
    assert [curve.title for curve in observed] == [f"observation[{i}]" for i in range(3)]
    assert [curve.title.split()[0].rstrip(":") for curve in said] == ["reward", "probability", "value", "entropy", "KL"]
    assert torch.equal(said[0].real, seen.reward) and torch.equal(said[1].real, 1 - seen.terminated)
    assert torch.equal(said[2].dreams, seen.open_loop.value) and torch.equal(said[4].sees, seen.kl)
    drawn = list(film(seen, "a dream"))
    assert len(drawn) == len(seen) and tile_corners(drawn[0], SEES) == []
    assert len(sheet(seen, "a dream", 960, None)[1]) == 8


def test_a_still_shows_moments_of_all_kinds(seen: Dream) -> None:
    """Eight columns from the first step to the last; the border of the dream changes in its row."""
    picture = still(seen, "a dream")
    sees, dreams = tile_corners(picture, SEES), tile_corners(picture, DREAMS)
    rows = sorted({top for top, _ in sees})
    assert len(rows) == 2 and len(tile_corners(picture, REFERENCE)) == 16
    moments = np.unique(np.linspace(0, STEPS - 1, 8).round())
    assert len(sees) == 8 + (moments < CONTEXT).sum() and {top for top, _ in dreams} == {rows[1]}
    assert min(left for _, left in dreams) > max(left for top, left in sees if top == rows[1])
    last = colours(seen.observation["pixels"])[-1].repeat(2, 0).repeat(2, 1)
    truth = max((corner for corner in tile_corners(picture, REFERENCE) if corner[0] < rows[0]), key=lambda c: c[1])
    assert np.array_equal(inside(picture, truth, 96), last)


def test_of_a_free_dream_there_is_truth_for_the_context_only() -> None:
    agent = image_agent()
    seen = imagined(agent, episode(agent, STEPS), 6, context=3)
    free = list(film(seen, "a dream"))
    assert len(free) == 9
    for step, frame in enumerate(free):
        truths, believed = tile_corners(frame, REFERENCE), tile_corners(frame, SEES if step < 3 else DREAMS)
        assert len(believed) == 1 and len(truths) == (step < 3)
        assert all(left == MARGIN and len(np.unique(inside(frame, (top, left), 192))) > 1 for top, left in truths)
    moments = np.unique(np.linspace(0, 8, 8).round())
    assert len(tile_corners(still(seen, "a dream"), REFERENCE)) == (moments < 3).sum()


@pytest.mark.parametrize("make", [mixed_agent, lambda: image_agent(other=PIXELS, speed=Unbounded((1,)))])
def test_pictures_and_numbers_together(make: type) -> None:
    """Channels first, nested keys, two pictures; the tiles above, the curves in two columns."""
    agent = make()
    seen = dream(agent, episode(agent, 6), context=2)
    images = len(agent.encoder.image_keys)
    drawn = list(film(seen, "a dream"))
    assert [len(tile_corners(frame, DREAMS)) for frame in drawn] == [0, 0, *[images] * 4]
    assert len(tile_corners(still(seen, "a dream"), DREAMS)) == 4 * images
    assert len(curves_of(seen)) == 2


@pytest.mark.parametrize("sides", [(160, 160), (256, 144), (48, 256)])
def test_pictures_that_are_larger_than_their_room(sides: tuple[int, int]) -> None:
    """Of these each second dot is shown."""
    large = Bounded(0, 255, (*sides, 3), dtype=torch.uint8)
    agent = build_agent(Composite(pixels=large, beside=large), OneHot(2), TINY)
    seen = dream(agent, episode(agent, STEPS), context=CONTEXT)
    truth = seen.observation["pixels"][0]
    for picture, room in ((next(film(seen, "a dream")), 190), (still(seen, "a dream"), 128)):
        step = -(-sides[1] // room)
        tile = scaled(colours(truth[None])[0], room)
        assert tile.shape[:2] == (-(-sides[0] // step), -(-sides[1] // step))
        corners = np.argwhere((picture == tile[0, 0]).all(-1))
        found = (picture[top : top + len(tile), left : left + tile.shape[1]] for top, left in corners)
        assert any(np.array_equal(part, tile) for part in found)


def test_colours_of_stacked_and_gray_pictures() -> None:
    stack = torch.arange(12).expand(1, 2, 2, 12) / 255
    assert colours(stack)[0, 0, 0].tolist() == [9, 10, 11]
    assert colours(stack[..., :4])[0, 0, 0].tolist() == [3, 3, 3]
    assert len(np.unique(colours(torch.full((1, 2, 2, 3), torch.nan)))) == 1


def test_files_of_a_dream(seen: Dream, frames: list[np.ndarray], tmp_path: Path) -> None:
    """A video of as many frames as steps, and a picture; nothing else is left."""
    files = write_dream(seen, tmp_path / "dreams" / "7.mp4", "a dream")
    assert sorted((tmp_path / "dreams").iterdir()) == sorted(files)
    with av.open(str(files[0])) as container:
        played = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(played) == STEPS
    for step, (shown, drawn) in enumerate(zip(played, frames, strict=True)):
        assert np.abs(shown.astype(int) - drawn).mean() < 6
        top, left = sorted(tile_corners(drawn, SEES) + tile_corners(drawn, DREAMS), key=lambda c: c[1])[1]
        red, _, blue = shown[top + 100, left + 1].astype(int)
        assert (blue > red + 60) == (step < CONTEXT) and (red > blue + 60) == (step >= CONTEXT)
    assert np.array_equal(np.asarray(Picture.open(files[1])), still(seen, "a dream"))
