"""TorchRL loggers of a run: JSON lines of our own, and TensorBoard that goes on after a kill."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import to_jsonable_python
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.record.loggers import Logger, TensorboardLogger

from dreamer_torchrl.record.metrics import RunLogger
from dreamer_torchrl.record.video import write_video

MAX_KEPT_LINES = 10_000


class JsonLinesLogger(RunLogger, Logger):
    """Append one JSON object per record to a file; each stands there whole, or not at all.

    Other than with TorchRL's `CSVLogger`, it is whole after a kill, without duplicates after a resume, and lines that
    find no room on a full disk are kept and written later.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self._kept: list[bytes] = []
        super().__init__(exp_name=self.path.stem, log_dir=str(self.path.parent))
        self._size = end_of_last_line(self.path)
        self._cut_file(self._size)  # a kill may have left half a line

    def _create_experiment(self) -> Any:
        return self.path.open("ab", buffering=0)

    def log_metrics(
        self, metrics: dict[str, Any] | TensorDictBase, step: int | None = None, *, keys_sep: str = "/"
    ) -> dict[str, Any]:
        """Append a line of strict JSON; its values. ``OSError`` if it cannot be written now; it is kept then."""
        if isinstance(metrics, TensorDictBase):
            metrics = metrics.flatten_keys(keys_sep).to_dict()
        values = to_jsonable_python(metrics, inf_nan_mode="null", fallback=lambda array: array.tolist())
        self._kept.append(json.dumps({"step": step} | values, allow_nan=False).encode() + b"\n")
        del self._kept[:-MAX_KEPT_LINES]
        self._write_kept()
        return values

    def log_scalar(self, name: str, value: float, step: int | None = None) -> None:
        self.log_metrics({name: value}, step)

    def log_video(self, name: str, video: Tensor, step: int | None = None, *, fps: int = 30) -> None:
        frames = video.flatten(0, -4).movedim(1, -1).cpu().numpy()  # [..., T, C, H, W] to [T, H, W, C]
        write_video(self.path.parent / "videos" / f"{name.replace('/', '-')}-{step}.mp4", frames, fps)

    def log_hparams(self, cfg: Mapping[str, Any]) -> None:
        self.path.with_suffix(".hparams.json").write_text(json.dumps(dict(cfg), indent=1, default=str) + "\n")

    def log_histogram(self, name: str, data: Sequence[float], *, step: int | None = None, bins: int = 32) -> None:
        counts, edges = np.histogram(np.asarray(data), bins)
        self.log_metrics({f"{name}/counts": counts.tolist(), f"{name}/edges": edges.tolist()}, step)

    @property
    def position(self) -> int:
        """Bytes of all lines so far, those that wait for room included."""
        return self._size + sum(map(len, self._kept))

    def sync(self) -> None:
        self._write_kept()
        os.fsync(self.experiment.fileno())

    def cut(self, position: int) -> None:
        """Drop what was written after `position`. A file that is shorter stays as it is."""
        self._kept.clear()
        if position < self._size:
            self._cut_file(position)
            self._cut_file(end_of_last_line(self.path))

    def shutdown(self, timeout: float | None = None) -> None:
        try:
            self._write_kept()
        finally:
            super().shutdown(timeout)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def _write_kept(self) -> None:
        while self._kept:
            rest = self._kept[0]
            try:
                while rest:  # a disk takes half a line before it says that it is full
                    rest = rest[self.experiment.write(rest) :]
            except OSError:
                self._cut_file(self._size)
                raise
            self._size += len(self._kept.pop(0))

    def _cut_file(self, size: int) -> None:
        self.experiment.truncate(size)
        self._size = size


def end_of_last_line(path: Path) -> int:
    """Bytes up to and including the last line break of a file: 0 if there is none."""
    if not path.stat().st_size:
        return 0
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        return data.rfind(b"\n") + 1


class ResumedTensorboardLogger(TensorboardLogger):
    """TorchRL's `TensorboardLogger` that hides points of earlier files which come after step ``resumed_at``."""

    def __init__(self, exp_name: str, log_dir: str, resumed_at: int | None = None):
        self._purge_step = None if resumed_at is None else resumed_at + 1
        super().__init__(exp_name, log_dir)

    def _create_experiment(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # only there where TensorBoard is installed

        return SummaryWriter(os.path.join(self.log_dir, self.exp_name), purge_step=self._purge_step, flush_secs=10)
