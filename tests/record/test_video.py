"""Videos are read back and compared with what was filmed."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dreamer_torchrl.record.video import keep_newest, write_video
from tests.training.training_examples import trained


def film(steps: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A bright square that moves to the right over a dark background, one colour per channel."""
    frames = np.full((steps, height, width, channels), 20, np.uint8)
    for step in range(steps):
        left = step * (width - 16) // max(1, steps - 1)
        frames[step, 8:24, left : left + 16] = (220, 120, 60)[:channels]
    return frames


@pytest.mark.parametrize(
    ("height", "width", "channels", "shape"),
    [(64, 64, 3, (256, 256)), (64, 64, 1, (256, 256)), (301, 403, 3, (302, 404)), (51, 33, 3, (408, 264))],
)
def test_every_frame_is_there_and_looks_right(
    tmp_path: Path, height: int, width: int, channels: int, shape: tuple[int, int]
) -> None:
    """Small images are enlarged by whole factors, odd sides padded by one; the index precedes the pictures."""
    frames = film(12, height, width, channels)
    path = write_video(tmp_path / "videos" / "eval.mp4", list(frames), fps=15)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        played = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 15
    assert played.shape == (12, *shape, 3)
    factor = shape[0] // height
    large = frames.repeat(factor, 1).repeat(factor, 2)
    assert np.abs(played[:, : large.shape[1], : large.shape[2]].astype(float) - large).mean() < 4
    assert 0 < path.read_bytes().index(b"moov") < path.read_bytes().index(b"mdat")
    again = write_video(tmp_path / "again.mp4", frames, fps=15)
    assert again.read_bytes() == path.read_bytes()  # the same frames give the same file


def test_a_failure_leaves_the_older_video_alone(tmp_path: Path) -> None:
    """A frame of another size in the middle is named, and nothing half-written stays."""
    path = write_video(tmp_path / "eval.mp4", film(5, 64, 64), fps=30)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"frame 1 of 'eval.mp4' is uint8 \[32, 64, 3\]"):
        write_video(path, [film(1, 64, 64)[0], film(1, 32, 64)[0]], fps=30)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "frames", "message"),
    [
        ("eval.gif", film(2, 64, 64), "end its name with .mp4"),
        ("eval.mp4", [], "record at least one"),
        ("eval.mp4", film(2, 64, 64).astype(np.float32), "must be uint8"),
        ("eval.mp4", film(2, 64, 64).transpose(0, 3, 1, 2), "must be uint8"),
    ],
)
def test_what_cannot_be_a_video_is_named(tmp_path: Path, name: str, frames: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames, fps=30)
    assert not list(tmp_path.iterdir())


def test_without_an_encoder_it_is_a_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamer_torchrl.record.video.ENCODER", "an encoder that is not there")
    path = write_video(tmp_path / "videos" / "eval.mp4", film(10, 64, 61), fps=10)
    assert list((tmp_path / "videos").iterdir()) == [path] and path.name == "eval.gif"
    with Image.open(path) as played:
        shown = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(played)]
        assert played.info["loop"] == 0
    assert len(shown) == 10 and sum(duration for _, duration in shown) == 1000
    large = film(10, 64, 61).repeat(5, 1).repeat(5, 2)
    assert all(np.abs(f[:, :305].astype(int) - real).mean() < 4 for (f, _), real in zip(shown, large, strict=True))


def test_a_run_keeps_its_newest_videos(tmp_path: Path) -> None:
    """Files without a step in their name are not those of the run."""
    (tmp_path / "run/videos").mkdir(parents=True)
    (tmp_path / "run/videos/mine.mp4").touch()
    options = ("total_steps=40", "eval.every=10", "eval.episodes=1", "eval.num_envs=1")
    run = trained(tmp_path / "run", *options, "eval.video=true", "eval.keep_videos=2")
    names = sorted(path.name for path in (run / "videos").iterdir())
    assert names == ["000000000030.mp4", "000000000040.mp4", "mine.mp4"]
    keep_newest(run / "videos", 5)
    assert len(list((run / "videos").iterdir())) == 3
