"""Frames of an episode to a video that any browser plays, or to a GIF where no encoder is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

SMALLEST_SIDE = 256
ENCODER = "libx264"  # as FFmpeg calls it


def write_video(path: Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int) -> Path:
    """Write frames ``[T, H, W, 3 or 1]`` of bytes as H.264 in an mp4 file, or a GIF where no encoder is; the file."""
    check(path, frames)
    write, path = (write_mp4, path) if can_encode() else (write_gif, path.with_suffix(".gif"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as unfinished:
        write(unfinished, frames, fps)
    return path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` at the end, and is deleted after an error."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def keep_newest(folder: Path, count: int) -> None:
    """Delete the files of a folder that are named after a step, but for those of the ``count`` newest steps."""
    files = [path for path in folder.iterdir() if path.stem.isdecimal()]
    old = sorted({int(path.stem) for path in files})[:-count]
    for path in (path for path in files if int(path.stem) in old):
        path.unlink(missing_ok=True)


def can_encode() -> bool:
    """Whether PyAV is there with an FFmpeg that has the encoder; some systems' own have not."""
    try:
        from av.codec import Codec

        Codec(ENCODER, "w")
    except (ImportError, ValueError):  # of which UnknownCodecError is one
        return False
    return True


def write_mp4(path: Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int) -> None:
    """H.264; the index in front lets a browser start before it has the whole file."""
    import av

    height, width = ready(frames[0]).shape[:2]
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream(ENCODER, rate=Fraction(fps), options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(ready(frame), format="rgb24")))
        container.mux(stream.encode())


def write_gif(path: Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int) -> None:
    """Repeated for ever; frames that show the same become one that lasts longer, players want at least 20 ms each."""
    pictures = [Image.fromarray(ready(frame)) for frame in frames]
    duration = max(20, round(100 / fps) * 10)  # GIFs count hundredths of a second
    pictures[0].save(path, format="gif", save_all=True, append_images=pictures[1:], duration=duration, loop=0)


def check(path: Path, frames: Sequence[np.ndarray] | np.ndarray) -> None:
    if path.suffix != ".mp4":
        raise ValueError(f"a video is an .mp4 file, got {path.name!r}: end its name with .mp4")
    if not len(frames):
        raise ValueError(f"no frames for {path.name!r}: record at least one")
    for number, frame in enumerate(frames):
        if frame.dtype != "uint8" or frame.shape != frames[0].shape or frame.shape[2:] not in ((1,), (3,)):
            given = f"frame {number} of {path.name!r} is {frame.dtype} {list(frame.shape)}"
            raise ValueError(f"{given}: all must be uint8 [height, width, 3 or 1] of one size")


def ready(frame: np.ndarray) -> np.ndarray:
    """A frame in three colours, of even sides, and large enough to see something."""
    height, width, channels = frame.shape
    factor = -(-SMALLEST_SIDE // min(height, width, SMALLEST_SIDE))
    for axis, times in enumerate((factor, factor, 3 // channels)):
        frame = frame if times == 1 else frame.repeat(times, axis)
    even = [(0, side % 2) for side in frame.shape[:2]]
    return np.ascontiguousarray(np.pad(frame, (*even, (0, 0)), mode="edge") if any(map(any, even)) else frame)
