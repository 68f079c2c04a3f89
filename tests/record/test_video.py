"""Videos are read back and compared with what was filmed."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from dreamer_torchrl.record.video import write_video


def film(steps: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    """A bright square that walks to the right over a dark ground, one colour per channel."""
    frames = np.full((steps, height, width, channels), 20, np.uint8)
    for step in range(steps):
        left = step * (width - 16) // max(1, steps - 1)
        frames[step, 8:24, left : left + 16] = (220, 120, 60)[:channels]
    return frames


def read_back(path: Path) -> tuple[np.ndarray, av.VideoStream]:
    """All frames, and what the file says about them."""
    with av.open(str(path)) as container:
        (stream,) = container.streams
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), stream


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [(64, 64, (256, 256)), (96, 96, (288, 288)), (210, 160, (420, 320)), (301, 403, (302, 404)), (51, 33, (408, 264))],
)
def test_every_frame_is_there_and_looks_right(tmp_path: Path, height: int, width: int, shape: tuple[int, int]) -> None:
    """Small images are enlarged by whole factors, odd sides padded by one."""
    frames = film(20, height, width)
    path = write_video(tmp_path / "videos" / "eval.mp4", frames, fps=15)
    played, stream = read_back(path)
    assert played.shape == (20, *shape, 3)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert stream.average_rate == 15
    factor = shape[0] // height
    large = frames.repeat(factor, 1).repeat(factor, 2)
    error = np.abs(played[:, : large.shape[1], : large.shape[2]].astype(float) - large)
    assert error.mean() < 4


def test_a_video_starts_before_it_is_loaded(tmp_path: Path) -> None:
    """Browsers need the index in front of the pictures."""
    data = write_video(tmp_path / "eval.mp4", film(5, 64, 64), fps=30).read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_gray_frames_and_lists_of_frames(tmp_path: Path) -> None:
    """As Atari gives them."""
    played, _ = read_back(write_video(tmp_path / "eval.mp4", list(film(5, 64, 64, 1)), fps=30))
    assert played.shape == (5, 256, 256, 3)
    assert np.abs(played[..., 0].astype(int) - played[..., 2]).max() <= 4
    assert played[0, 40, 10].mean() > 200


def test_the_same_frames_give_the_same_file(tmp_path: Path) -> None:
    """Number of cores or time of day do not matter."""
    first, second = (write_video(tmp_path / name, film(5, 64, 64), fps=30) for name in ("a.mp4", "b.mp4"))
    assert first.read_bytes() == second.read_bytes()


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
    """Before anything is written."""
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / name, frames, fps=30)
    assert not list(tmp_path.iterdir())


def test_without_an_encoder_it_is_a_gif(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same name, the same pictures and the same length."""
    monkeypatch.setattr("dreamer_torchrl.record.video.ENCODER", "an encoder that is not there")
    path = write_video(tmp_path / "videos" / "eval.mp4", film(10, 64, 61), fps=10)
    assert list((tmp_path / "videos").iterdir()) == [path] and path.name == "eval.gif"
    with Image.open(path) as played:
        shown = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(played)]
        assert played.info["loop"] == 0
    assert len(shown) == 10 and sum(duration for _, duration in shown) == 1000
    large = film(10, 64, 61).repeat(5, 1).repeat(5, 2)
    assert all(
        np.abs(frame[:, :305].astype(int) - film).mean() < 4 for (frame, _), film in zip(shown, large, strict=True)
    )


def test_a_folder_that_cannot_be_made_is_an_error_of_the_system(tmp_path: Path) -> None:
    """So that the training can go on without the video."""
    (tmp_path / "videos").write_text("in the way")
    with pytest.raises(OSError, match="videos"):
        write_video(tmp_path / "videos" / "eval.mp4", film(2, 64, 64), fps=30)
