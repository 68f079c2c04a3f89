"""Frames of an episode to a video that any browser plays."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SMALLEST_SIDE = 256


def write_video(path: Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int) -> Path:
    """Write frames ``[T, H, W, 3]``, or ``[T, H, W, 1]`` for gray ones, bytes, as H.264 in an mp4 file.

    Small images are enlarged by whole factors, odd sizes padded. The file is there whole or not at all.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> frames = np.zeros((8, 64, 64, 3), np.uint8)
        >>> write_video(Path(tempfile.mkdtemp()) / "episode.mp4", frames, fps=30).name
        'episode.mp4'
    """
    import av

    first = checked(path, frames)
    height, width = ready(first).shape[:2]
    unfinished = path.with_name(f".{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The index in front lets a browser start before it has the whole file.
        with av.open(str(unfinished), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "20", "preset": "veryfast"})
            stream.width, stream.height, stream.pix_fmt, stream.thread_count = width, height, "yuv420p", 1
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(ready(frame), format="rgb24")))
            container.mux(stream.encode())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def checked(path: Path, frames: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The first frame, once it is clear that all can be encoded."""
    if path.suffix != ".mp4":
        raise ValueError(f"a video is an .mp4 file, got {path.name!r}: end its name with .mp4")
    if not len(frames):
        raise ValueError(f"no frames for {path.name!r}: record at least one")
    for number, frame in enumerate(frames):
        known = frame.dtype == "uint8" and frame.ndim == 3 and frame.shape[-1] in (1, 3)
        if not known or frame.shape != frames[0].shape:
            raise ValueError(
                f"frame {number} of {path.name!r} is {frame.dtype} {list(frame.shape)}: "
                "all must be uint8 [height, width, 3 or 1] of one size"
            )
    return frames[0]


def ready(frame: np.ndarray) -> np.ndarray:
    """A frame in three colours, of even sides, and large enough to see something."""
    import numpy as np

    height, width, channels = frame.shape
    factor = -(-SMALLEST_SIDE // min(height, width, SMALLEST_SIDE))
    large = frame.repeat(factor, 0).repeat(factor, 1).repeat(3 // channels, 2)
    even = ((0, large.shape[0] % 2), (0, large.shape[1] % 2), (0, 0))
    return np.ascontiguousarray(np.pad(large, even, mode="edge"))
