"""Pictures of open-loop predictions, looked at pixel by pixel, and their videos read back."""

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
from dreamer_torchrl.modules import NoDecoder
from dreamer_torchrl.views.imagination import OpenLoop, open_loop, prediction_error
from dreamer_torchrl.views.imagination_video import (
    PREDICTED,
    SEEN,
    as_bytes,
    caption,
    curves_of,
    draw_sheet,
    frames,
    still,
    strips_of,
    write_open_loop,
)
from tests.agents.acting_examples import TINY
from tests.views.test_imagination import episode, vector_agent

CONTEXT, STEPS = 4, 9


def image_agent(sides: tuple[int, int] = (48, 48), **others: Unbounded) -> Agent:
    pixels = Bounded(0, 255, (*sides, 3), dtype=torch.uint8)
    return build_agent(Composite(pixels=pixels, **others), OneHot(2), TINY)


@pytest.fixture(scope="module")
def loop() -> OpenLoop:
    agent = image_agent()
    return open_loop(agent, episode(agent, STEPS), context=CONTEXT)


def tiles_of(loop: OpenLoop) -> list[tuple[slice, slice]]:
    strips = strips_of(loop)
    return draw_sheet(loop, "title", 960, 4, [strip.name for strip in strips], strips).tiles


def above(frame: np.ndarray, tile: tuple[slice, slice]) -> str:
    return f"#{bytes(frame[tile[0].start - 1, tile[1].start]).hex()}"


def test_each_frame_shows_the_images_of_its_step(loop: OpenLoop) -> None:
    """Truth, reconstruction, open loop and error side by side, whose border says who sees; a cursor in the curves."""
    shown, tiles, strips = list(frames(loop, "title")), tiles_of(loop), strips_of(loop)
    assert [strip.kind for strip in strips] == ["truth", "reconstruction", "open loop", "error"]
    assert len(shown) == STEPS and {frame.shape for frame in shown} == {shown[0].shape}
    assert all(side % 2 == 0 for side in shown[0].shape[:2])
    for step, frame in enumerate(shown):
        for tile, strip in zip(tiles, strips, strict=True):
            assert frame[tile][0, 0].tolist() == strip.pictures[step][0, 0].tolist()
            assert frame[tile][-1, -1].tolist() == strip.pictures[step][-1, -1].tolist()
        assert above(frame, tiles[1]) == SEEN
        assert above(frame, tiles[2]) == (SEEN if step < CONTEXT else PREDICTED)
    changed = (shown[5] != shown[6]).any(-1)  # [H, W]
    assert changed[tiles[0][0].stop + 40 :].sum(0).nonzero()[0].tolist()  # the cursor moved
    assert not changed[: tiles[0][0].start - 5].any()


def test_the_still_picture_shows_moments(loop: OpenLoop) -> None:
    picture, strips = still(loop, "title"), strips_of(loop)
    tiles = draw_sheet(loop, "title", 1280, 8, [""] * 32, strips).tiles
    for row, strip in enumerate(strips):
        assert picture[tiles[8 * row]][0, 0].tolist() == strip.pictures[0][0, 0].tolist()
        assert picture[tiles[8 * row + 7]][0, 0].tolist() == strip.pictures[STEPS - 1][0, 0].tolist()


@pytest.mark.parametrize("sides", [(256, 144), (48, 256)])
def test_images_of_any_size_keep_their_shape(sides: tuple[int, int]) -> None:
    agent = image_agent(sides)
    loop = open_loop(agent, episode(agent, 3), context=1)
    shown = next(frames(loop, "title"))[tiles_of(loop)[0]]
    assert abs(shown.shape[0] / shown.shape[1] - sides[0] / sides[1]) < 0.01
    assert shown[0, 0].tolist() == strips_of(loop)[0].pictures[0][0, 0].tolist()


def test_numbers_are_curves() -> None:
    """The ones that vary most, in their order; the caption says what is left out."""
    agent = build_agent(Composite(a=Unbounded((12,)), b=Unbounded(())), OneHot(2), TINY)
    steps = episode(agent, STEPS)
    steps["a"] = steps["a"] * torch.tensor([0.0, 0, 0, 0, 0, *range(1, 8)])
    loop = open_loop(agent, steps, context=CONTEXT)
    titles = [curve.title for curve in curves_of(loop)]
    assert titles[:8] == [*(f"a[{index}]" for index in range(5, 12)), "b"]
    assert [title.partition(" ")[0] for title in titles[8:]] == ["reward", "probability", "value", "entropy", "KL"]
    assert caption(loop).endswith("Shown: 8 of 13 numbers.") and "sees 4 steps" in caption(loop)
    assert strips_of(loop) == [] and still(loop, "title").shape == next(frames(loop, "title")).shape


def test_a_free_imagination_shows_the_truth_as_long_as_it_is_known() -> None:
    agent = image_agent(speed=Unbounded((2,)))
    loop = open_loop(agent, episode(agent, STEPS), context=CONTEXT, imagine=6)
    shown, tiles = list(frames(loop, "title")), tiles_of(loop)
    assert len(shown) == CONTEXT + 6 and [strip.kind for strip in strips_of(loop)] == ["truth", "open loop"]
    assert (shown[-1][tiles[0]] == 255).all() and not (shown[CONTEXT - 1][tiles[0]] == 255).all()
    assert above(shown[-1], tiles[1]) == PREDICTED and "the policy acts" in caption(loop)


def test_colours_of_stacked_and_gray_pictures() -> None:
    stack = torch.arange(12).expand(1, 2, 2, 12) / 255
    assert as_bytes(stack)[0, 0, 0].tolist() == [9, 10, 11]
    assert as_bytes(stack[..., :4])[0, 0, 0].tolist() == [3, 3, 3]


def test_files(tmp_path: Path) -> None:
    """A video of as many frames as steps, and a picture; nothing else is left."""
    agent = vector_agent()
    loop = open_loop(agent, episode(agent, STEPS), context=CONTEXT)
    files = write_open_loop(loop, tmp_path / "dreams" / "7.mp4", "title")
    assert sorted((tmp_path / "dreams").iterdir()) == sorted(files)
    with av.open(str(files[0])) as container:
        played = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(played) == STEPS
    for video, drawn in zip(played, frames(loop, "title"), strict=True):
        assert np.abs(video.astype(int) - drawn).mean() < 6
    assert np.array_equal(np.asarray(Picture.open(files[1])), still(loop, "title"))


def test_without_a_decoder_the_truth_and_the_numbers_remain() -> None:
    spec = Composite(pixels=Bounded(0, 255, (48, 48, 3), dtype=torch.uint8), observation=Unbounded((2,)))
    agent = build_agent(spec, OneHot(2), TINY, decoder=NoDecoder)
    steps = episode(agent, 12)
    loop = open_loop(agent, steps, context=4)
    assert [strip.kind for strip in strips_of(loop)] == ["truth"] and not loop.error
    first, *_, reward, continuing, value, entropy, kl = curves_of(loop)
    assert first.title == "observation[0]" and (first.seen, first.predicted) == (None, None)
    assert all(curve.predicted is not None for curve in (reward, continuing, value, entropy)) and kl.seen is not None
    assert still(loop, "title").any() and set(prediction_error(agent, steps, 4).model) == {"reward"}
    free = open_loop(agent, steps, context=4, imagine=5)
    assert not strips_of(free) and len(list(frames(free, "title"))) == 9
